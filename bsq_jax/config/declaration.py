"""What is stated about a setting, and the ranges that settings share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values that a setting may have; for tuples, each of their numbers.

    Attributes:
      words: continues ``it must be``, for messages.
      holds: whether a value is allowed.
      choices: all values, where they are listed.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Allowed:
    """One of these words."""
    return Allowed(f"one of {', '.join(choices)}", choices.__contains__, choices)


def one_of_or_own(*choices: str) -> Allowed:
    """One of these words, or a part of the user's own, see `bsq_jax.core.own_parts`."""
    return Allowed(
        f"one of {', '.join(choices)}, or one of your own, module:attribute",
        lambda text: text in choices or ":" in text,
        choices,
    )


ANY = Allowed("anything", lambda _: True)
POSITIVE = Allowed("positive", lambda value: value > 0)
NOT_NEGATIVE = Allowed("0 or more", lambda value: value >= 0)
SHARE = Allowed("in [0, 1]", lambda value: 0 <= value <= 1)
DECAY = Allowed("in [0, 1)", lambda value: 0 <= value < 1)  # of an average that moves


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that is stated about one setting.

    Attributes:
      default: the value if nothing else is said; None for a setting that may be None.
      allowed: the values that it may have.
      identity: whether a model's parameters depend on it.
      kinds: of a section with a ``name``, the names that have the setting; empty: all have. The
        parameters of the others do not depend on it.
      any_length: for tuples, whether there may be more or fewer numbers than in the default.
      kind: the type of its values, or several; that of the default unless said.
      absent: for a setting that was added later: what files meant that were written before it
        existed, and so the value with which a model's fingerprint is what it was then. None: files
        without it take today's default. See `bsq_jax.config.identity.VERSION_0_1`.
    """

    default: Any
    allowed: Allowed = ANY
    _: dataclasses.KW_ONLY
    identity: bool = False
    kinds: tuple[str, ...] = ()
    any_length: bool = False
    kind: type | tuple[type, ...] | None = None
    absent: Any = None

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return self.default is None

    def refusal(self, value: Any) -> str | None:
        """What a value of the right type must be instead, in words; None if it is allowed."""
        if value is None or all(map(self.allowed.holds, _parts(value))):
            return None
        return self.allowed.words


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
