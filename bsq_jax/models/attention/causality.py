"""Which frames, and which of their tokens, are visible to a token in attention."""

from __future__ import annotations

import dataclasses

import numpy as np

from bsq_jax.core.errors import UserError

KINDS = ("block_causal", "token_causal", "full")


@dataclasses.dataclass(frozen=True)
class Causality:
    """Which tokens are visible to a token: a rule for clips of any length; no mask is stored.

    Tokens lie in (time, height, width) order.

    Attributes:
      kind: ``block_causal``: to a token of frame t all tokens of frames <= t are visible
        (paper, section 3.3); ``token_causal``: the tokens before it and itself, as in GPT;
        ``full``: all.
      window: number of visible frames, the token's own included; 0 for no limit. With ``full``
        the window reaches as far ahead as it reaches back.

    Raises:
      UserError: an unknown kind, or a negative window.
    """

    kind: str = "block_causal"
    window: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"causality '{self.kind}': it must be one of {', '.join(KINDS)}")
        if self.window < 0:
            raise UserError(f"window is {self.window}: it must be 0 (no limit) or more frames")

    @property
    def streams(self) -> bool:
        """Whether a frame can be computed before the next one is there."""
        return self.kind != "full"

    @property
    def limits(self) -> bool:
        """Whether a clip may have tokens that are not visible to every token."""
        return self.streams or self.window > 0

    def visible_frames(self, first: int, last: int, frames: int) -> tuple[int, int]:
        """The span of frames, end excluded, visible to any token of frames ``[first, last)``.

        Args:
          first: first frame of the queries.
          last: one past their last frame.
          frames: number of frames in all.
        """
        begin = max(first - self.window + 1, 0) if self.window else 0
        if self.streams:
            return begin, last
        return begin, min(last - 1 + self.window, frames) if self.window else frames

    def mask(
        self, queries: tuple[int, int], keys: tuple[int, int], tokens: int
    ) -> np.ndarray | None:
        """Which keys are visible to each query.

        Args:
          queries: span of frames of the queries, end excluded.
          keys: span of frames of the keys, end excluded.
          tokens: tokens of a frame.

        Returns:
          Booleans ``[query, key]``, True = visible; None where every key is visible to every query.
        """
        query, key = (np.arange(a * tokens, b * tokens) for a, b in (queries, keys))
        ahead = key[None] // tokens - query[:, None] // tokens  # in frames
        mask = np.ones((len(query), len(key)), np.bool_)
        if self.kind == "token_causal":
            mask &= key[None] <= query[:, None]
        elif self.kind == "block_causal":
            mask &= ahead <= 0
        if self.window:
            mask &= np.abs(ahead) < self.window
        return None if mask.all() else mask


EVERYTHING = Causality("full")  # all tokens are visible to all
