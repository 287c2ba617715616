"""Which implementation of attention computes a clip, and in which blocks of queries and keys.

Implementations of ``model.attention``; all compute the same and differ in what they touch:

===========  ======================================================================================
``auto``     see `choose_implementation`
``dense``    all scores at once and an explicit mask, the reference
``by_head``  the same, one head of one example at a time, computed again in the backward pass, so
             that the scores stay in a CPU's cache
``blocked``  blocks of frames, each against the span of keys that is visible from it, which leaves
             the masked half out; one head at a time where that helps a CPU
``cudnn``    such blocks, each by cuDNN's flash attention (NVIDIA GPUs, 16 bits)
``splash``   the block-sparse Pallas kernel for TPUs, interpreted elsewhere, which is slow
===========  ======================================================================================
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.core.target import platform
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.cudnn import refusal

IMPLEMENTATIONS = ("auto", "dense", "by_head", "blocked", "cudnn", "splash")
# Each block is a part of the program, which takes a while to compile: there are at most so many,
# and where frames are small a block has several, so that it has about as many tokens as this.
_MOST_BLOCKS = 16
_BLOCK_TOKENS = 256
_SPLASH_TOKENS = 128  # splash attention works on tiles of this many tokens


class Blocking(enum.Enum):
    """How ``blocked`` cuts a clip; chosen by the code that builds a model, not by a config.

    Attributes:
      LARGE: several frames a block, so that programs stay small: for training and evaluation.
      PER_FRAME: a block for each frame, however small, so that a frame is computed by the very same
        operations in a stream, a short clip and a long one: for the Python API.
      FOR_COUNTING: likewise, and all heads at once on any device: no product that is not needed,
        for counting operations.
    """

    LARGE = "large"
    PER_FRAME = "per_frame"
    FOR_COUNTING = "for_counting"


class Block(NamedTuple):
    """Some queries against the span of keys visible from them, both as slices of tokens.

    Attributes:
      queries: tokens of the queries.
      keys: tokens of the keys.
      mask: ``[query, key]``, True = visible; None where every key is visible to every query.
    """

    queries: slice
    keys: slice
    mask: np.ndarray | None


def blocks_of(
    chosen: str,
    causality: Causality,
    frames: int,
    tokens: int,
    queries: int,
    blocking: Blocking = Blocking.LARGE,
) -> list[Block]:
    """The blocks of an implementation.

    Args:
      chosen: the implementation, not ``auto``.
      causality: which tokens are visible to a token.
      frames: of the keys.
      tokens: of a frame.
      queries: frames of the queries, the last ones of the keys'.
      blocking: how ``blocked`` cuts a clip.
    """
    in_blocks = chosen in ("blocked", "cudnn") and causality.limits
    step = queries  # frames of a block
    if in_blocks and chosen == "blocked" and blocking != Blocking.LARGE:
        step = 1
    elif in_blocks:
        step = max(-(-step // _MOST_BLOCKS), -(-_BLOCK_TOKENS // tokens))
    first, blocks = frames - queries, []
    for begin in range(first, frames, step):
        end = min(begin + step, frames)
        visible = causality.visible_frames(begin, end, frames) if in_blocks else (0, frames)
        rows = slice((begin - first) * tokens, (end - first) * tokens)
        keys = slice(visible[0] * tokens, visible[1] * tokens)
        blocks.append(Block(rows, keys, causality.mask((begin, end), visible, tokens)))
    return blocks


class Choice(NamedTuple):
    """An implementation, and why it is not the one that would usually be taken; may be empty."""

    name: str
    why: str = ""


class Noted(NamedTuple):
    """A clip that attention was traced for.

    Attributes:
      asked: of ``model.attention``.
      choice: what computes it.
      frames: of the keys.
      tokens: of a frame.
      dtype: of the computation.
    """

    asked: str
    choice: Choice
    frames: int
    tokens: int
    dtype: jnp.dtype


_NOTED: contextvars.ContextVar[list[Noted] | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def noted_choices() -> Iterator[list[Noted]]:
    """A list that holds, without repetitions, what attention is traced for inside."""
    found: list[Noted] = []
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def note(noted: Noted) -> None:
    """Adds a clip to the list of `noted_choices`, if there is one."""
    found = _NOTED.get()
    if found is not None and noted not in found:
        found.append(noted)


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
      implementation: of ``model.attention``, see the top of this module.
      causality: which tokens are visible to a token.
      frames: frames of the keys.
      tokens: tokens of a frame.
      dtype: of the computation.
      channels: of a head.
      queries: frames of the queries, the last ones; None: all.
      padded: some examples may have fewer frames, and the rest must not be visible.

    Returns:
      The implementation: on a GPU in 16 bits ``cudnn``, where cuDNN takes these shapes; elsewhere
      ``blocked`` for clips of which something is not visible, and for the rest ``by_head`` for long
      sequences on a CPU, or ``dense``.

    Raises:
      UserError: no such implementation, or one that cannot run here or does not take these clips.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attention={implementation}: it must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    backend = platform()
    if implementation == "splash":
        return _splash_choice(frames, tokens)
    why = ""
    if implementation == "cudnn" or (
        implementation == "auto" and backend == "gpu" and jnp.dtype(dtype).itemsize == 2
    ):
        blocks = blocks_of("cudnn", causality, frames, tokens, queries or frames)
        lengths = [(q.stop - q.start, k.stop - k.start) for q, k, _ in blocks]
        why = refusal(dtype, channels, lengths)
        if not why and padded and causality.window:
            why = "it cannot leave out the padding of short clips within a window"
        if not why:
            return Choice("cudnn")
        if implementation == "cudnn":
            raise UserError(f"model.attention=cudnn: {why}; take auto")
        why = f"cudnn is not used: {why}"
    if implementation != "auto":
        return Choice(implementation)
    if frames > 1 and causality.limits:
        return Choice("blocked", why)
    return Choice("by_head" if cpu.scores_exceed_cache(frames * tokens) else "dense", why)


def _splash_choice(frames: int, tokens: int) -> Choice:
    if frames * tokens % _SPLASH_TOKENS:
        raise UserError(
            f"model.attention=splash takes multiples of {_SPLASH_TOKENS} tokens, not {frames} x "
            f"{tokens}: take auto"
        )
    backend = platform()
    interpreted = f"its kernel is interpreted on a {backend}, which is slow"
    return Choice("splash", "" if backend == "tpu" else interpreted)
