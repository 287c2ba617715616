r"""Says what a training run will need: memory, communication and time, before anything is rented.

Examples:
  bsq-jax plan --config tokenizer:imagenet256 --mesh 1x8x1 --device h100
  bsq-jax plan --config tokenizer:size=2b --topology v5p:2x4x4 --mesh 1x32x1

Values are changed as for training: --config.train.batch_size=512 --config.model.remat=full

The training step is compiled for the mesh, and nothing is allocated. Without --topology XLA
compiles it for as many virtual CPU devices: parameters, optimizer and FLOPs are those of any
machine, temporary memory and collectives are estimates (an accelerator fuses more, keeps 16 bits
where a CPU computes in 32, and splits sums between devices). With --topology XLA compiles for
these TPUs themselves, if libtpu is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_output_file, write_output
from bsq_jax.cli.train_or_evaluate import CONFIG_HELP
from bsq_jax.core.errors import UserError

# Name on the command line -> kind of device as JAX calls it, and its memory in GiB (data sheets).
DEVICES = {
    "v4": ("TPU v4", 32),
    "v5e": ("TPU v5 lite", 16),
    "v5p": ("TPU v5", 95),
    "v6e": ("TPU v6 lite", 32),
    "a100": ("NVIDIA A100", 80),
    "h100": ("NVIDIA H100", 80),
    "h200": ("NVIDIA H200", 141),
    "b200": ("NVIDIA B200", 180),
}
UTILIZATION = 0.4  # of the peak, for the estimate of time
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``plan``."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help=CONFIG_HELP)
    parser.add_argument("--mesh", metavar="DATAxFSDPxTENSOR", help="sizes; default: config.mesh")
    parser.add_argument("--topology", metavar="NAME", help="TPUs such as v5p:2x4x4 (chips)")
    parser.add_argument("--device", choices=DEVICES, help="kind of device to compare with")
    parser.add_argument("--json", metavar="FILE", help="also write it here; it may exist")


def run(flags: argparse.Namespace) -> int:
    """Plans a run and prints the result."""
    if flags.json:
        check_output_file(flags.json, force=True)
    config = _config(flags)
    sizes = config.mesh.to_dict()
    device = flags.device
    if flags.topology:
        devices = described_tpus(flags.topology)
        device = device or flags.topology.partition(":")[0]
    elif sizes["data"] == -1:
        raise UserError("give --mesh DATAxFSDPxTENSOR or --topology: how many devices are there?")
    else:
        devices = _virtual_cpus(math.prod(sizes.values()))
    from bsq_jax.core.sharding import make_mesh
    from bsq_jax.training.step_cost import plan

    result = plan(config, make_mesh(**sizes, devices=devices))
    result |= _against(device, result)
    print(table(result))
    if flags.json:
        write_output(flags.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def _config(flags: argparse.Namespace) -> Any:
    """The complete config, with the mesh that the flags name."""
    from bsq_jax.config import finalize, load_config_file, set_overrides
    from bsq_jax.training.saved_models import with_tokenizer

    config = load_config_file(flags.config)
    set_overrides(config, flags.settings)
    if flags.mesh:
        parts = flags.mesh.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            raise UserError(f"--mesh {flags.mesh}: write three sizes, such as 4x2x1")
        for axis, part in zip(("data", "fsdp", "tensor"), parts, strict=True):
            config.mesh[axis] = int(part)
    if config.task != "tokenizer" and not config[config.task].tokenizer:
        config[config.task].tokenizer = "described by config.model"
    elif config.task != "tokenizer":
        config = with_tokenizer(config, "")
    return finalize(config)


def _virtual_cpus(count: int) -> Sequence[Any]:
    """CPU devices that exist only in name."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX was started already: with as many as there are
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        raise UserError(f"the mesh has {count} devices, and JAX was started with {len(devices)}")
    return devices[:count]


def described_tpus(name: str) -> Sequence[Any]:
    """Devices of TPUs that are elsewhere.

    Raises:
      UserError: libtpu is missing or does not know them.
    """
    # This machine is none of them, and libtpu would look for what it is, and complain.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3", "TPU_WORKER_ID": "0"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    except Exception as error:  # whatever the plugin raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {name}: {reason} (it needs `pip install libtpu`, and a name such as "
            "v5p:2x4x4, v6e:4x4 or v5e:4x4)"
        ) from None


def _against(name: str | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """How the run compares with what a kind of device has; arithmetic, not a measurement."""
    from bsq_jax.training.flops import peak_of_kind

    if name not in DEVICES:
        return {}
    kind, memory = DEVICES[name]
    peak = peak_of_kind(kind)
    assert peak is not None
    seconds = result["flops_per_device"] / (UTILIZATION * peak)
    return {
        "device": kind,
        "device_memory": memory * GIB,
        "seconds_per_step": seconds,
        "examples_per_second": result["batch_size"] / seconds,
        "days": result["steps"] * seconds / 86400,
    }


def table(result: Mapping[str, Any]) -> str:
    """The plan as text for a terminal."""

    def size(value: int) -> str:
        return f"{value / GIB:10.3f} GiB" if value >= GIB // 10 else f"{value / 2**20:10.3f} MiB"

    rows: list[tuple[str, str]] = [("bytes on each device", "")]
    for name, value in result["state_bytes"].items():
        rows.append((f"  {name}", size(value)))
    memory = result["memory"]
    rows.append(("  outputs besides the state", size(memory["results"])))
    rows.append(("  temporary: activations, gradients", size(memory["temporary"])))
    rows.append(("  peak total", size(memory["peak"])))
    if "device" in result:
        share = memory["peak"] / result["device_memory"]
        rows.append((f"  of the memory of {result['device']}", f"{share:10.1%}"))
    rows.append(("useful FLOPs of a step", f"{result['flops']:10.4g}"))
    rows.append(("  of one device", f"{result['flops_per_device']:10.4g}"))
    rows.append(("communication per step and device", ""))
    for kind, (times, count) in result["collectives"].items():
        rows.append((f"  {kind}, {times} times", size(count)))
    if not result["collectives"]:
        rows.append(("  none", ""))
    if "device" in result:
        rows.append((f"arithmetic for {result['device']} at {UTILIZATION:.0%} of its peak", ""))
        rows.append(("  a step", f"{result['seconds_per_step']:10.3g} s"))
        rows.append(("  examples a second", f"{result['examples_per_second']:10.4g}"))
        rows.append((f"  {result['steps']} steps", f"{result['days']:10.3g} days"))
    width = max(len(name) for name, _ in rows) + 2
    of = " of {}x{}, the largest".format(*result["size"]) if result["several_sizes"] else ""
    head = (
        f"{result['name']}: {result['parameters'] / 1e6:.1f}M parameters"
        f"{result['discriminator']}, global batch {result['batch_size']}{of}, mesh "
        f"{result['mesh']} of {result['compiled_for']}"
    )
    return "\n".join([head, *(f"{name:<{width}}{value}".rstrip() for name, value in rows)])


COMMAND = Command(
    "what a training run will need: memory, communication, time",
    __doc__,
    add_arguments,
    run,
    settings=True,
)
