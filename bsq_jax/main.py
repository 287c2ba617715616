"""Flags to config to job: ``python -m bsq_jax.main --config FILE --workdir DIR``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

USAGE = """\
train, or resume what was stopped:
  python -m bsq_jax.main --config configs/tokenizer.py:imagenet256,bits=36 --workdir runs/a
change single values (the keys and their defaults are in bsq_jax/config.py):
  ... --config.train.batch_size=64 --config.data.source=folder:/pictures
evaluate the newest checkpoint, with the config saved in the workdir:
  python -m bsq_jax.main --mode evaluate --workdir runs/a
start a new run from the weights of another one, or of an export (which --mode evaluate takes too):
  python -m bsq_jax.main --workdir runs/b --config.train.init=runs/a
train a video model that starts from an image model; evaluate an image model frame by frame:
  ... --config configs/video.py --workdir runs/v --config.train.init=runs/quickstart
  ... --mode evaluate --workdir runs/quickstart --config.data.source=clips:/videos \\
      --config.data.frames=16
record steps 10 to 15 for XProf or TensorBoard (`xprof runs/a/profile`):
  ... --profile 10:15
several hosts find each other on TPU pods, under Slurm and Open MPI; elsewhere, on host I of N:
  ... --coordinator HOST:PORT --processes N --process I
or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment (docs/launch.md)

exit status: 0 done, 2 a mistake in what was given, 75 stopped with everything saved: run again
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from bsq_jax.core.errors import UserError

        raise UserError(f"{message}: see --help")


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into our flags and the rest, which are values of the config.

    Raises:
      UserError: a flag without its value, or a value that cannot be.
    """
    parser = _Parser(
        "bsq-jax",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help="config file and variant")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--mode", choices=("train", "evaluate"), default="train")
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="steps to record for XProf, in WORKDIR/profile"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--processes", metavar="N", type=int, help="number of processes")
    parser.add_argument("--process", metavar="I", type=int, help="this one's number, from 0")
    return parser.parse_known_args(argv)


def _steps(text: str | None) -> tuple[int, int] | None:
    """First and last step of ``10:15``.

    Raises:
      UserError: it is something else.
    """
    from bsq_jax.core.errors import UserError

    if text is None:
        return None
    first, _, last = text.partition(":")
    if first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last):
        return int(first), int(last)
    raise UserError(f"--profile {text}: write the first and the last step, such as 10:15")


def run(argv: Sequence[str]) -> int:
    """Runs one job; returns the exit status.

    Raises:
      UserError: a mistake in flags, config, files or data.
    """
    began = time.monotonic()
    flags, rest = parse_flags(argv)
    profile = _steps(flags.profile)

    # Late, so that --help and a wrong flag answer at once.
    from bsq_jax.config import finalize, load_config_file, parse_overrides, set_value
    from bsq_jax.core import distributed, failures
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.errors import UserError
    from bsq_jax.core.paths import local_path
    from bsq_jax.training import determinism, jobs
    from bsq_jax.training.initial import read_initial_config, read_saved_config, with_tokenizer

    overrides = parse_overrides(rest)
    workdir = local_path(flags.workdir)
    if flags.config is not None:
        config = load_config_file(flags.config)
    elif flags.mode == "evaluate" or (workdir / "config.json").exists():
        config = read_saved_config(workdir)
    elif initial := dict(overrides).get("train.init"):
        config = read_initial_config(initial)
    else:
        raise UserError("give --config FILE.py: there is no saved config in the workdir")
    if flags.mode == "evaluate":
        # What training chose for speed is no part of a model's quality; an override still counts.
        config.model.dtype = "float32"
    for key, text in overrides:
        set_value(config, key, text)
    config = finalize(with_tokenizer(config, workdir))
    if config.train.deterministic:
        determinism.ask_for()
    distributed.initialize(flags.coordinator, flags.processes, flags.process)
    enable_compilation_cache()
    with failures.shared():
        if flags.mode == "evaluate":
            return jobs.evaluate_job(config, workdir)
        return jobs.train_job(config, workdir, profile=profile, began=began)


def main() -> None:
    """Entry point of ``python -m bsq_jax.main`` and ``bsq-jax``."""
    # Quiet two libraries that would otherwise greet every run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)

    from bsq_jax.core.errors import INTERRUPTED, MISTAKE, UserError

    try:
        status = run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = MISTAKE
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    main()
