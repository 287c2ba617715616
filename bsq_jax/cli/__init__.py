"""The command line, ``python -m bsq_jax COMMAND`` or ``bsq-jax COMMAND``: a module each command."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence

from bsq_jax.cli import (
    convert,
    decode,
    encode,
    evaluate,
    export,
    generate,
    info,
    plan,
    rd,
    score,
    studies,
    tokenize,
    train,
)
from bsq_jax.cli.command import Command, Parser, exit_status, parse
from bsq_jax.core.errors import UserError

__all__ = ["COMMANDS", "main"]

# In the order in which one needs them.
COMMANDS: Mapping[str, Command] = {
    "train": train.COMMAND,
    "evaluate": evaluate.COMMAND,
    "plan": plan.COMMAND,
    "encode": encode.COMMAND,
    "decode": decode.COMMAND,
    "info": info.COMMAND,
    "rd": rd.COMMAND,
    "tokenize": tokenize.COMMAND,
    "generate": generate.COMMAND,
    "score": score.COMMAND,
    "export": export.COMMAND,
    "convert": convert.COMMAND,
    "studies": studies.COMMAND,
}


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
    """Prints the table of commands where that is asked for."""
    if list(words) in (["-h"], ["--help"]):
        print(_table())
        return 0
    if not words:
        raise UserError("give a command: see --help")
    if words[0].startswith("-"):
        raise UserError(f"give a command before {words[0]}, such as `bsq-jax train`: see --help")
    (nearest,) = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.0)
    raise UserError(f"unknown command {words[0]!r}: did you mean {nearest}? (see --help)")


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
            "bsq-jax COMMAND --help explains a command.",
        ]
    )
