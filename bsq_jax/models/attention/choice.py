"""Which implementation of attention computes a clip, and in which blocks of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.core.target import platform
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.cudnn import refusal

IMPLEMENTATIONS = ("auto", "dense", "by_head", "blocked", "by_frame", "cudnn", "splash")
# Each block is a part of the program, which takes a while to compile: there are at most so many,
# and where frames are small a block has several, so that it has about as many tokens as this.
_MOST_BLOCKS = 16
_BLOCK_TOKENS = 256
# As by_frame, on any backend all heads at once: no multiplication that is not needed, for counting.
VISIBLE = "visible"
_SPLASH_TOKENS = 128  # splash attention works on tiles of this many tokens


class Block(NamedTuple):
    """Some queries against the span of keys that they see, both as slices of tokens.

    Attributes:
      queries: tokens of the queries.
      keys: tokens of the keys.
      mask: ``[query, key]``, True = sees; None where every query sees every key.
    """

    queries: slice
    keys: slice
    mask: np.ndarray | None


def blocks_of(
    chosen: str, causality: Causality, frames: int, tokens: int, queries: int
) -> list[Block]:
    """The blocks of an implementation; `frames` of the keys, of which `queries` are the last."""
    first = frames - queries
    in_blocks = chosen in ("blocked", "by_frame", "cudnn", VISIBLE) and causality.limits
    step = queries  # frames of a block
    if in_blocks and chosen in ("by_frame", VISIBLE):
        step = 1
    elif in_blocks:
        step = max(-(-step // _MOST_BLOCKS), -(-_BLOCK_TOKENS // tokens))
    blocks = []
    for begin in range(first, frames, step):
        end = min(begin + step, frames)
        seen = causality.seen(begin, end, frames) if in_blocks else (0, frames)
        rows = slice((begin - first) * tokens, (end - first) * tokens)
        keys = slice(seen[0] * tokens, seen[1] * tokens)
        blocks.append(Block(rows, keys, causality.mask((begin, end), seen, tokens)))
    return blocks


class Choice(NamedTuple):
    """An implementation, and why it is not the one that would usually be taken; may be empty."""

    name: str
    why: str = ""


def choose_implementation(
    implementation: str,
    causality: Causality,
    frames: int,
    tokens: int,
    dtype: jnp.dtype = jnp.float32,
    *,
    channels: int = 64,
    queries: int | None = None,
    padded: bool = False,
) -> Choice:
    """What ``auto`` stands for on this backend.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      causality: who sees whom.
      frames: frames of the keys.
      tokens: tokens of a frame.
      dtype: of the computation.
      channels: of a head.
      queries: frames of the queries, the last ones; None: all.
      padded: some examples may have fewer frames, which then must not be seen.

    Returns:
      The implementation: on a GPU in 16 bits ``cudnn``, where cuDNN takes these shapes; elsewhere
      ``blocked`` for clips of which something is not seen, and for the rest ``by_head`` for long
      sequences on a CPU, or ``dense``.

    Raises:
      UserError: the implementation cannot run on this backend, or does not take these clips.
    """
    backend = platform()
    if implementation == "splash" and (frames * tokens % _SPLASH_TOKENS):
        raise UserError(
            f"model.attention=splash takes multiples of {_SPLASH_TOKENS} tokens, not {frames} x "
            f"{tokens}: take auto"
        )
    why = ""
    if implementation == "cudnn" or (
        implementation == "auto" and backend == "gpu" and jnp.dtype(dtype).itemsize == 2
    ):
        blocks = blocks_of("cudnn", causality, frames, tokens, queries or frames)
        lengths = [(q.stop - q.start, k.stop - k.start) for q, k, _ in blocks]
        why = refusal(dtype, channels, lengths)
        if not why and padded and causality.window:
            why = "it cannot leave out the padding of short clips within a window"
        if why and implementation == "cudnn":
            raise UserError(f"model.attention=cudnn: {why}; take auto")
        if not why:
            return Choice("cudnn")
        why = f"cudnn is not used: {why}"
    if implementation == "splash" and backend != "tpu":
        return Choice("splash", f"its kernel is interpreted on a {backend}, which is slow")
    if implementation != "auto":
        return Choice(implementation)
    if frames > 1 and causality.limits:
        return Choice("blocked", why)
    return Choice("by_head" if cpu.scores_exceed_cache(frames * tokens) else "dense", why)
