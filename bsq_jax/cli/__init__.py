"""The command line, ``python -m bsq_jax COMMAND`` or ``bsq-jax COMMAND``: a module each command."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from bsq_jax import __version__
from bsq_jax.cli import (
    convert,
    decode,
    demo,
    encode,
    evaluate,
    export,
    generate,
    info,
    plan,
    plot,
    push,
    rd,
    reconstruct,
    score,
    studies,
    tokenize,
    train,
)
from bsq_jax.cli.command import Command, Parser, exit_status, leave, parse
from bsq_jax.core.errors import UserError

__all__ = ["COMMANDS", "main", "run_and_leave"]

# Other words for the commands.
_SYNONYMS = {
    "train": "fit resume finetune fine_tune pretrain",
    "evaluate": "eval test validate val",
    "plot": "curves curve figure draw graph chart metrics tensorboard",
    "plan": "memory estimate flops profile summary",
    "encode": "compress enc pack",
    "decode": "decompress dec unpack extract",
    "reconstruct": "roundtrip preview",
    "info": "inspect show header describe",
    "demo": "serve web page gui browser try",
    "rd": "rate_distortion benchmark compare bd_rate",
    "tokenize": "tokens tokenise dataset prepare",
    "generate": "sample gen inpaint synthesize",
    "score": "fid fvd psnr metric",
    "export": "save package",
    "push": "publish upload hub share",
    "convert": "import from_torch torch",
    "studies": "study experiment experiments ablation",
}

# In the order in which one needs them.
COMMANDS: Mapping[str, Command] = {
    "train": train.COMMAND,
    "evaluate": evaluate.COMMAND,
    "plot": plot.COMMAND,
    "plan": plan.COMMAND,
    "encode": encode.COMMAND,
    "decode": decode.COMMAND,
    "reconstruct": reconstruct.COMMAND,
    "info": info.COMMAND,
    "demo": demo.COMMAND,
    "rd": rd.COMMAND,
    "tokenize": tokenize.COMMAND,
    "generate": generate.COMMAND,
    "score": score.COMMAND,
    "export": export.COMMAND,
    "push": push.COMMAND,
    "convert": convert.COMMAND,
    "studies": studies.COMMAND,
}


def run_and_leave() -> NoReturn:
    """Entry point of ``bsq-jax`` and ``python -m bsq_jax``: runs the words of this process."""
    leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
      arguments: the command and its flags; None: those of the process.

    Returns:
      The exit status; see `bsq_jax.core.errors`.

    Raises:
      SystemExit: after ``--help``.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = COMMANDS.get(words[0]) if words else None
    return exit_status(lambda: _run(words, command), command)


def _run(words: Sequence[str], command: Command | None) -> int:
    if command is None:
        return _without_command(words)
    parser = Parser(f"bsq-jax {words[0]}", command.description)
    command.add_arguments(parser)
    return command.run(parse(parser, command, words[1:]))


def _without_command(words: Sequence[str]) -> int:
    """Prints the table of commands, or the version, where that is asked for."""
    if list(words) in (["-h"], ["--help"], ["help"]):
        print(_table())
        return 0
    if list(words) in (["-V"], ["--version"], ["version"]):
        print(f"bsq-jax {__version__}")
        return 0
    if not words:
        raise UserError("give a command: see --help")
    if words[0].startswith("-"):
        raise UserError(f"give a command before {words[0]}, such as `bsq-jax train`: see --help")
    near = _nearest(words[0])
    hint = f"did you mean {near} ({COMMANDS[near].help})? (see --help)" if near else "see --help"
    raise UserError(f"unknown command {words[0]!r}: {hint}")


def _nearest(word: str) -> str | None:
    """The command that was probably meant."""
    word = word.lower().replace("-", "_")
    for name, synonyms in _SYNONYMS.items():
        if word in synonyms.split():
            return name
    return next(iter(difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)), None)


def _table() -> str:
    """The commands with a line each."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "usage: bsq-jax COMMAND ...  (or python -m bsq_jax COMMAND ...)",
            "",
            "Image and video tokenization with binary spherical quantization (BSQ-ViT).",
            "",
            "commands:",
            *(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()),
            "",
            "examples:",
            "  bsq-jax train --config quickstart --workdir runs/quickstart",
            "  bsq-jax encode photo.jpg photo.bsq --model runs/quickstart",
            "",
            "bsq-jax COMMAND --help explains a command; bsq-jax --version names the release.",
        ]
    )
