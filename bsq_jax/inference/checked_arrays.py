"""Tokens that users hand to the API, and cuts of arrays into chunks that can be computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.text import listed
from bsq_jax.inference.given import Given, as_array, gather
from bsq_jax.inference.grids import Size, check_tokens, grid_of
from bsq_jax.models.positions import check_length
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.quantizers.layout import TokenLayout

_LEAST_ROWS = 64  # see `least_batch`; measured with jax 0.10 and 0.12, where the limit is 51


def checked_bits(
    bits: Any, shape: TokenizerShape, layout: TokenLayout, *, clips: bool = True
) -> Given:
    """Tokens that a model can decode.

    Args:
      bits: zeros and ones, integers or booleans; ``[row, column, L]``, ``[batch, row, column, L]``
        or ``[batch, time, row, column, L]``; or the first bits of tokens, as many as one of
        `TokenizerShape.prefixes` says; or a list of these.
      shape: of the model.
      layout: of its tokens.
      clips: whether the third is allowed.

    Returns:
      uint8 ``[batch, time, row, column, L]`` of each input.

    Raises:
      UserError: wrong shape, values other than 0 and 1, tokens that name no code, or a clip that is
        too long.
    """

    def convert(item: Any) -> tuple[np.ndarray, str]:
        array = as_array(item, "bits")
        _check_shape(array, shape, clips=clips)
        array = zeros_and_ones(array, layout)
        if array.ndim == 5:
            return array, "NT"
        return (array[:, None], "N") if array.ndim == 4 else (array[None, None], "")

    return gather(bits, convert)


def _check_shape(array: np.ndarray, shape: TokenizerShape, *, clips: bool) -> None:
    length = listed(shape.prefixes)
    fits = array.ndim in (3, 4, 5)[: 2 + clips] and 0 not in array.shape[-3:-1]
    if not fits or array.shape[-1] not in shape.prefixes:
        ids = array.ndim >= 2 and array.shape[-1] not in shape.prefixes
        hint = "; of integers from Tokenizer.ids give Tokenizer.bits(ids)" if ids else ""
        raise UserError(
            f"bits have shape {array.shape}: this model takes [row, column, {length}], "
            f"[batch, row, column, {length}]"
            + (f" or [batch, time, row, column, {length}]" if clips else " in a stream")
            + hint
        )
    frames = array.shape[1] if array.ndim == 5 else 1
    if not frames:
        raise UserError("a clip of 0 frames: give 1 or more")
    if array.ndim == 5:
        check_length(shape.positions, shape.video_frames(frames) - 1, shape.frames)
    check_tokens(shape, array.shape[-3:-1], frames, f"an array of bits of shape {array.shape}")


def checked_sizes(size: Any, given: Given, shape: TokenizerShape) -> list[Size]:
    """The sizes in pixels that pictures are cut to.

    Args:
      size: (height, width) of all of them, or of a list of inputs one each; None: whole patches.
      given: their tokens, of `checked_bits`.
      shape: of the model.

    Raises:
      UserError: it is none, or tokens of a picture of this size have another grid.
    """
    grids = [array.shape[2:4] for array in given.arrays]
    down, across = shape.patch
    if size is None:
        return [(rows * down, columns * across) for rows, columns in grids]
    try:
        sizes = np.asarray(size)
        whole = sizes.dtype.kind in "iu" and sizes.shape[-1:] == (2,)
    except ValueError:  # lists of several lengths
        whole = False
    if not whole or sizes.shape not in ((2,), (len(grids), 2)[: 2 * given.listed]):
        each = f", or a list of {len(grids)} of them" if given.listed else ""
        said = " ".join(repr(size).split())
        said = f"{said[:60]}..." if len(said) > 80 else said  # a line, also of a thousand sizes
        raise UserError(f"size={said}: give (height, width) in pixels{each}")
    found = []
    pairs = np.broadcast_to(sizes, (len(grids), 2)).tolist()
    for place, ((rows, columns), (height, width)) in enumerate(zip(grids, pairs, strict=True)):
        if min(height, width) < 1 or grid_of(shape, height, width) != (rows, columns):
            where = f"number {place} (from 0) of the list: " if given.listed else ""
            raise UserError(
                f"{where}size={height, width}: tokens of {rows}x{columns} belong to pictures of "
                f"{(rows - 1) * down + 1} to {rows * down} by {(columns - 1) * across + 1} to "
                f"{columns * across} pixels (height x width)"
            )
        found.append((height, width))
    return found


def check_frames(frames: int | None, token_frames: int, shape: TokenizerShape) -> None:
    """Refuses numbers of frames that clips of so many frames of tokens are not of.

    Raises:
      UserError: it is one.
    """
    most = shape.video_frames(token_frames)
    least = max(most - shape.patch_time + 1, 1) if token_frames > 1 else 1
    if frames is not None and not least <= frames <= most:
        raise UserError(
            f"frames={frames}: {token_frames} frames of tokens belong to clips of {least} to {most}"
        )


def zeros_and_ones(array: np.ndarray, layout: TokenLayout) -> np.ndarray:
    """Tokens ``[..., L]`` as uint8.

    Args:
      array: of any type.
      layout: of the tokens.

    Raises:
      UserError: values other than 0 and 1, or tokens that name no code.
    """
    if array.dtype.kind not in "bui" or (array.size and not np.isin(array, (0, 1)).all()):
        raise UserError("bits must be integers or booleans, all 0 or 1")
    array = array.astype(np.uint8)
    if not layout.full and not (named := layout.names_code(array)).all():
        first = ", ".join(map(str, np.argwhere(~named)[0]))
        raise UserError(
            f"{np.sum(~named):,d} of {named.size:,d} tokens name no code, the first at [{first}]: "
            f"this model has {layout.codes:,d} codes in {layout.bits} bits, give bits that encode "
            "returned"
        )
    return array


def checked_dtype(dtype: str) -> str:
    """``float32`` or ``uint8``.

    Raises:
      UserError: it is something else.
    """
    if dtype not in ("float32", "uint8"):
        raise UserError(f"dtype='{dtype}': decode gives float32 or uint8")
    return dtype


def least_batch(tokens: int) -> int:
    """Examples that a program should at least be given, a power of two.

    XLA for CPUs multiplies matrices of few rows in another order than larger ones. With so many
    examples even a single frame has enough tokens, so that a picture alone, in a batch and as a
    frame of a stream gives the same to the bit.

    Args:
      tokens: of a frame as it is computed.
    """
    return 2 ** (-(-_LEAST_ROWS // tokens) - 1).bit_length()


def filled(array: np.ndarray, least: int) -> np.ndarray:
    """The examples of an array, its last one repeated until there are `least`."""
    missing = least - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing > 0 else array


def chunks(count: int, largest: int, least: int = 1, step: int = 2) -> Iterator[slice]:
    """Cuts `count` rows into a few sizes, so that few shapes compile.

    Each chunk but the last has at most `largest` rows, divided by `step` any number of times, and
    so has the last, unless it has fewer than `least`.

    Args:
      count: of rows.
      largest: a power of two.
      least: a power of two of at most `largest`.
      step: a power of two; larger ones give fewer sizes and more chunks.
    """
    start = 0
    while start < count:
        size = largest
        while size > count - start and size > least:
            size = max(size // step, least)
        yield slice(start, min(start + size, count))
        start += size
