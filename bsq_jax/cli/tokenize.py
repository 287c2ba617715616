r"""Tokenizes a data set once, for priors and generators to be trained on.

Examples:
  bsq-jax tokenize runs/tokens --model runs/quickstart --examples 20000
  bsq-jax train --config prior --workdir runs/prior \
      --config.prior.tokenizer=runs/quickstart --config.data.source=tokens:runs/tokens

The crops are those that the tokenizer would be trained on, and all of its validation split;
--config.data.source=... and the other keys of data say which.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import add_model, model_path
from bsq_jax.cli.outputs import say
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``tokenize``."""
    parser.add_argument("folder", help="folder of the token set, to be made")
    add_model(parser)
    parser.add_argument("--examples", type=int, default=0, help="training crops; default: an epoch")
    parser.add_argument("--force", action="store_true", help="overwrite a token set")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(flags: argparse.Namespace) -> int:
    """Tokenizes, and prints what was made."""
    from bsq_jax.config import finalize, set_overrides
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.data.tokens import FILE
    from bsq_jax.inference.token_sets import tokenize
    from bsq_jax.inference.tokenizer import Tokenizer
    from bsq_jax.training.saved_models import will_be_removed

    folder = local_path(flags.folder)
    if (folder / FILE).exists() and not flags.force:
        raise UserError(f"{folder} holds a token set: choose another folder, or add --force")
    if flags.examples < 0:
        raise UserError(f"--examples {flags.examples}: give 1 or more, or 0 for an epoch")
    enable_compilation_cache()
    path = model_path(flags)
    tokenizer = Tokenizer.load(path)
    step = tokenizer.origin.get("step")
    if isinstance(step, int) and (reason := will_be_removed(path, step)):
        say(
            f"step {step} of {path} will be removed ({reason}), and its tokens fit no other step: "
            f"bsq-jax export {path} FOLDER keeps it, for --model and for training"
        )
    config = tokenizer.config.copy_and_resolve_references()
    set_overrides(config, flags.settings)
    tokens = tokenize(
        folder, tokenizer, finalize(config), examples=flags.examples, quiet=flags.quiet
    )
    counts = ", ".join(f"{count:,d} {split}" for split, count in tokens.counts.items())
    print(f"{folder}: clips of up to {tokens.frames} frame(s) from {tokens.source}: {counts}")
    return 0


COMMAND = Command(
    "tokenize a data set once, for priors and masked models",
    __doc__,
    add_arguments,
    run,
    interrupted="the token set is as it was before",
    settings=True,
)
