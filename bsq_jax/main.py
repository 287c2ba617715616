"""Trains or evaluates: ``python -m bsq_jax.main --config FILE --workdir DIR``.

The same as ``python -m bsq_jax train`` and ``evaluate``, in the words that launch scripts use.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from bsq_jax import __version__
from bsq_jax.cli import train, train_or_evaluate
from bsq_jax.cli.command import Parser, exit_status, leave, parse

USAGE = """\
train, or resume what was stopped:
  python -m bsq_jax.main --config configs/tokenizer.py:imagenet256,bits=36 --workdir runs/a
change single values (the keys and their defaults are in bsq_jax/config/settings.py):
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

exit status: 0 done, 2 a mistake in what was given, 130 stopped by Ctrl-C, 75 stopped by SIGTERM
with everything saved: run again
"""


def run(argv: Sequence[str]) -> int:
    """Runs one job; returns the exit status.

    Raises:
      UserError: a mistake in flags, config, files or data.
    """
    parser = Parser("python -m bsq_jax.main", __doc__, epilog=USAGE)
    train_or_evaluate.add_config_and_workdir(parser)
    parser.add_argument("--mode", choices=("train", "evaluate"), default="train")
    train_or_evaluate.add_profile(parser)
    train_or_evaluate.add_processes(parser)
    parser.add_argument("--version", action="version", version=f"bsq-jax {__version__}")
    flags = parse(parser, train.COMMAND, argv)
    return train_or_evaluate.run(flags, evaluate=flags.mode == "evaluate")


def main() -> None:
    """Entry point of ``python -m bsq_jax.main``."""
    leave(exit_status(functools.partial(run, sys.argv[1:]), train.COMMAND))


if __name__ == "__main__":
    main()
