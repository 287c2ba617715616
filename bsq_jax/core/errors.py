"""The one exception that speaks to a user, and how a run ends."""

from __future__ import annotations

# Exit statuses of the command line besides 0 and, for what nobody expected, 1.
MISTAKE = 2  # of the user: running again would not help
UNAVAILABLE = 69  # the processes of a run did not find each other in time (EX_UNAVAILABLE)
RUN_AGAIN = 75  # stopped with everything saved, or another process was lost (EX_TEMPFAIL)
INTERRUPTED = 130  # by the keyboard


class UserError(ValueError):
    """A mistake in what the user gave us: a key, a path, a file, a shape.

    The message is one line that says what is wrong and what to do about it. Command line entry
    points print it after ``error:`` and exit with status 2; the Python API lets it rise, and since
    it is a ``ValueError`` callers can catch it without importing this module.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, where it is known what is kept: the message says so, and how to go on."""


class NonFiniteError(UserError):
    """A loss or metric became NaN or infinite: the message names the step, the term and cures."""


def out_of_memory(error: BaseException, what_to_do: str) -> UserError | None:
    """The error as a user should see it where a device or the host has too little memory.

    Args:
      error: whatever was raised. JAX raises a ``RuntimeError`` whose text begins with the status.
      what_to_do: for the message, what to lower.

    Returns:
      None if it is another error.
    """
    reason = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not reason.startswith("RESOURCE_EXHAUSTED"):
        return None
    return UserError(f"out of memory: {what_to_do} ({reason[:300]})")
