"""What a command is, and how each of them begins and ends: parser, messages and exit statuses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bsq_jax.core.errors import INTERRUPTED, MISTAKE, UserError, out_of_memory
from bsq_jax.core.signals import answered


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
      help: one line for the table of commands.
      description: what ``--help`` says above the flags; examples included.
      add_arguments: adds flags to the command's parser.
      run: does what the flags ask and returns the exit status. Imports of JAX and the like are
        inside it, so that ``--help`` and a wrong flag answer at once.
      interrupted: what Ctrl-C leaves, for its message.
      settings: whether ``--config.KEY=VALUE`` is taken too; `run` finds these words in
        ``flags.settings``.
      os_errors: whether an ``OSError`` is a mistake in a path that was given, to be told in a line;
        else its traceback is shown, as of any other failure.
      intermixed: whether flags may stand between arguments of which the first may be left out.
      memory: what to do where a device or the host has too little memory, for its message.
    """

    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    interrupted: str = "nothing was written"
    settings: bool = False
    os_errors: bool = True
    intermixed: bool = False
    memory: str = "give smaller or fewer inputs"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line; flags are never abbreviated."""

    def __init__(self, prog: str, description: str, **more: object):
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **more,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` in place of a usage text."""
        raise UserError(f"{message}: see --help")


def parse(parser: Parser, command: Command, words: Sequence[str]) -> argparse.Namespace:
    """The flags of a command; words that belong to its config are in ``settings``.

    Raises:
      UserError: an unknown flag, a flag without its value, or a value that cannot be.
    """
    try:
        parses = (
            parser.parse_known_intermixed_args if command.intermixed else parser.parse_known_args
        )
        flags, rest = parses(words)
    except UserError:
        # What is missing may be there under a name that does not exist.
        _check_names(parser, command, words, flags_only=True)
        raise
    _check_names(parser, command, rest)
    flags.settings = rest
    return flags


def _check_names(
    parser: Parser, command: Command, words: Sequence[str], *, flags_only: bool = False
) -> None:
    """Refuses a flag or an argument that the command does not have; the closest is named.

    Raises:
      UserError: there is such a word.
    """
    own = _flags(parser)
    value = False
    for word in words:
        setting = word.startswith("--config.") and command.settings
        if value or setting or word.partition("=")[0] in own:
            value = setting and not value and "=" not in word  # which is the next word
            continue
        if flags_only and not word.startswith("--"):
            continue
        if command.settings:
            from bsq_jax.config.parsing import unknown_flag

            raise UserError(unknown_flag(word, own))
        kind = "flag" if word.startswith("-") else "argument"
        near = difflib.get_close_matches(word.partition("=")[0], own, n=2, cutoff=0.75)
        hint = f"did you mean {' or '.join(near)}? (see --help)" if near else "see --help"
        raise UserError(f"unknown {kind} {word}: {hint}")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser and of the parsers inside it."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [flag for inner in action.choices.values() for flag in _flags(inner)]
    return list(dict.fromkeys(found))


def leave(status: int) -> NoReturn:
    """Ends the process of a command line.

    After Ctrl-C at once, unless other processes of a run are to be told: threads of XLA may be at
    work still, and would fail while Python takes itself apart.
    """
    jax = sys.modules.get("jax")
    if status == INTERRUPTED and not (jax and jax.distributed.is_initialized()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def exit_status(run: Callable[[], int], command: Command | None = None) -> int:
    """Runs a command line; errors that speak to its user become a line and an exit status.

    Args:
      run: parses, and does the work; returns the exit status.
      command: which command it is, where that is known.

    Returns:
      The status of `run`; 2 for a mistake in what was given; 130 after Ctrl-C. Other errors pass.
    """
    # Quiet two libraries that would otherwise greet every run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        with answered():
            status = run()
        sys.stdout.flush()  # here, so that a reader that has gone is noticed here
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as error:
        left = str(error) or (command.interrupted if command else "nothing was done")
        print(f"interrupted: {left}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if command is not None and not command.os_errors:
            raise
        if isinstance(error, BrokenPipeError):
            # The reader has gone. What is still buffered must not fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return MISTAKE
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return MISTAKE
    except (MemoryError, RuntimeError) as error:
        told = out_of_memory(error, command.memory if command else Command.memory)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return MISTAKE
