r"""Says what a training run will need: memory, communication and time, before anything is rented.

Examples:
  bsq-jax plan --config tokenizer:imagenet256 --mesh 1x8x1 --device h100
  bsq-jax plan --config tokenizer:size=2b --topology v5p:2x4x4 --mesh 1x32x1
  bsq-jax plan --config tokenizer:size=600m --mesh best --devices 8 --device h100
  bsq-jax plan --check --config my_config.py
  bsq-jax plan --check --topology v6e:1x1

Values are changed as for training: --config.train.batch_size=512 --config.model.remat=full

The training step is compiled for the mesh, and nothing is allocated. Without --topology XLA
compiles it for as many virtual CPU devices: parameters, optimizer and FLOPs are those of any
machine, temporary memory and collectives are estimates (an accelerator fuses more, keeps 16 bits
where a CPU computes in 32, and splits sums between devices). With --topology XLA compiles for
these TPUs themselves, if libtpu is installed.

--mesh best compiles every layout of so many devices, and names the one that fits and has the least
estimated time: FLOPs at 40% of the device's peak, and bytes at its published bandwidth after them.

--check lowers every program of the config (training, evaluation, coding, sampling) for NVIDIA GPUs
and TPUs, and without --config those of all published configs. Status 1 and a line for each program
that does not lower, does not take the platform's attention, multiplies in float32 where the config
says bfloat16, or waits for the host. With --topology programs are compiled for these TPUs too, with
--mesh for virtual CPU devices: their memory and what devices exchange are then in the report.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_output_file, write_output
from bsq_jax.cli.planning.devices import described_tpus, virtual_cpus
from bsq_jax.cli.planning.machines import GIB, MACHINES
from bsq_jax.cli.planning.table import against, table
from bsq_jax.cli.train_or_evaluate import CONFIG_HELP
from bsq_jax.core.errors import UserError

BEST = "best"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``plan``."""
    parser.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help=CONFIG_HELP)
    mesh_help = f"sizes, or {BEST} to compare all layouts; default: config.mesh"
    parser.add_argument("--mesh", metavar="DATAxFSDPxTENSOR", help=mesh_help)
    parser.add_argument("--topology", metavar="NAME", help="TPUs such as v5p:2x4x4 (chips)")
    parser.add_argument("--device", choices=MACHINES, help="kind of device to compare with")
    parser.add_argument("--devices", type=int, metavar="N", help=f"how many, for --mesh {BEST}")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help=f"of a device, for --mesh {BEST}"
    )
    parser.add_argument("--check", action="store_true", help="check the programs of the config")
    parser.add_argument("--json", metavar="FILE", help="also write it here; it may exist")


def run(flags: argparse.Namespace) -> int:
    """Plans a run and prints the result."""
    if flags.json:
        check_output_file(flags.json, force=True)
    if not flags.check and not flags.config:
        raise UserError("give --config: see --help")
    if flags.mesh == BEST and flags.check:
        raise UserError(f"--check takes no --mesh {BEST}: give sizes")
    if {flags.devices, flags.memory} != {None} and flags.mesh != BEST:
        raise UserError(f"--devices and --memory are for --mesh {BEST}")
    if flags.check and flags.device:
        raise UserError("--check takes no --device: it is for GPUs and TPUs of any kind")
    if flags.memory is not None and not flags.memory > 0:
        raise UserError(f"--memory {flags.memory:g}: give more than 0")
    if flags.check:
        result, text, status = _check(flags)
    elif flags.mesh == BEST:
        result, text, status = _best(flags)
    else:
        result, text, status = _plan(flags)
    print(text)
    if flags.json:
        write_output(flags.json, (json.dumps(result, indent=1) + "\n").encode())
    return status


_Answer = tuple[Any, str, int]  # for JSON, for a terminal, exit status


def _plan(flags: argparse.Namespace) -> _Answer:
    config = _config(flags)
    sizes = config.mesh.to_dict()
    device = flags.device
    if flags.topology:
        devices = described_tpus(flags.topology)
        device = device or flags.topology.partition(":")[0]
    elif sizes["data"] == -1:
        raise UserError("give --mesh DATAxFSDPxTENSOR or --topology: how many devices are there?")
    else:
        devices = virtual_cpus(math.prod(sizes.values()))
    from bsq_jax.core.sharding import make_mesh
    from bsq_jax.training.step_cost import plan

    result = plan(config, make_mesh(**sizes, devices=devices))
    result |= against(device, result)
    return result, table(result), 0


def _best(flags: argparse.Namespace) -> _Answer:
    device = flags.device or (flags.topology or "").partition(":")[0]
    if device not in MACHINES:
        raise UserError(f"--mesh {BEST}: give --device, whose memory and speed it compares with")
    if (flags.devices is None) == (flags.topology is None):
        raise UserError(f"--mesh {BEST}: give --devices N, or --topology NAME")
    if flags.devices is not None and flags.devices < 1:
        raise UserError(f"--devices {flags.devices}: give 1 or more")
    flags.mesh = ""
    config, machine = _config(flags), MACHINES[device]
    tpus = flags.topology
    devices = described_tpus(tpus) if tpus else virtual_cpus(flags.devices)
    from bsq_jax.cli.planning import layouts

    limit = int((flags.memory or machine.memory) * GIB)
    rows = layouts.rank(layouts.compare(config, devices, machine, limit))
    best = rows[0].fits
    text = layouts.table(config, rows, machine, limit)
    return layouts.as_json(rows, machine, limit), text, 0 if best else 1


def _check(flags: argparse.Namespace) -> _Answer:
    sizes = _sizes(flags.mesh) if flags.mesh else (1, 1, 1)
    if flags.topology:
        devices = described_tpus(flags.topology)
        sizes = sizes if flags.mesh else (-1, 1, 1)
    else:
        devices = virtual_cpus(math.prod(sizes))
    from bsq_jax.cli.planning import check_report
    from bsq_jax.core.sharding import make_mesh

    names = [flags.config] if flags.config else check_report.published()
    mesh = make_mesh(*sizes, devices=devices)
    platforms = ["tpu"] if flags.topology else ["cuda", "tpu", *(["cpu"] if flags.mesh else [])]
    configs = {}
    for name in names:
        flags.config, flags.mesh = name, ""
        configs[name] = _config(flags)
    compiles = "cpu" in platforms or bool(flags.topology)
    return check_report.check_all(configs, mesh, platforms, compiles=compiles)


def _sizes(text: str) -> tuple[int, int, int]:
    """The sizes of ``--mesh``."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--mesh {text}: write three sizes, such as 4x2x1")
    data, fsdp, tensor = map(int, parts)
    return data, fsdp, tensor


def _config(flags: argparse.Namespace) -> Any:
    """The complete config, with the mesh that the flags name."""
    from bsq_jax.cli.planning.tokenizers import with_described_tokenizer
    from bsq_jax.config import finalize, load_config_file, set_overrides
    from bsq_jax.training.saved_models import with_tokenizer

    config = load_config_file(flags.config)
    with_described_tokenizer(config, flags.config)
    set_overrides(config, flags.settings)
    if flags.mesh:
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), _sizes(flags.mesh), strict=True)))
    if config.task != "tokenizer" and not config[config.task].tokenizer:
        config[config.task].tokenizer = "described by config.model"
    elif config.task != "tokenizer":
        config = with_tokenizer(config, "")
    return finalize(config)


COMMAND = Command(
    "what a training run will need: memory, communication, time",
    __doc__,
    add_arguments,
    run,
    settings=True,
)
