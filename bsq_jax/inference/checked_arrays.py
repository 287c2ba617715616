"""The arrays that users hand to the API: checks, and cuts into chunks that can be computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bsq_jax.core.errors import UserError
from bsq_jax.core.text import listed
from bsq_jax.models.positions import check_length
from bsq_jax.models.tokenizer import TokenizerShape
from bsq_jax.quantizers.layout import TokenLayout

SIGNED = (-1, 1)
"""The range of float pixels inside this package."""
# Ranges that pixels may have: their scale and offset to `SIGNED`.
_RANGES: dict[tuple[float, float], tuple[float, float]] = {
    SIGNED: (1.0, 0.0),
    (0, 1): (0.5, -1.0),
    (0, 255): (127.5, -1.0),
}
_TOLERANCE = 1e-3  # of a range of 2, for what arithmetic in 16 bits leaves
_LEAST_ROWS = 64  # see `least_batch`; measured with jax 0.10 and 0.12, where the limit is 51


def checked_pixels(
    pixels: npt.ArrayLike,
    shape: TokenizerShape,
    *,
    value_range: tuple[float, float] | None = None,
    clips: bool = True,
    limit: bool = True,
) -> tuple[np.ndarray, bool]:
    """Pixels that a model can encode.

    Floats whose range is not stated count as [-1, 1]; if all of them lie in [0, 1], they were most
    likely meant to be in that range, and a `UserWarning` says so.

    Args:
      pixels: uint8 or floats; ``[batch, height, width, 3]`` or
        ``[batch, time, height, width, 3]``.
      shape: of the model.
      value_range: black and white of the floats, ``(-1, 1)``, ``(0, 1)`` or ``(0, 255)``.
      clips: whether the second is allowed.
      limit: refuse clips that are longer than the model's.

    Returns:
      uint8 or float32 in [-1, 1] ``[batch, time, height, width, 3]``, and whether it was a clip.

    Raises:
      UserError: wrong shape, type or range, or a clip that is too long.
    """
    array = np.asarray(pixels)
    height, width = shape.image_height, shape.image_width
    if array.ndim not in (4, 5)[: 1 + clips] or array.shape[-3:] != (height, width, 3):
        raise UserError(
            f"pixels have shape {array.shape}: this model takes [batch, {height}, {width}, 3] "
            + (
                f"images or [batch, time, {height}, {width}, 3] videos"
                if clips
                else "frames of a stream"
            )
        )
    if limit:
        _check_frames(array, shape)
    array = _in_signed_range(array, value_range)
    return (array, True) if array.ndim == 5 else (array[:, None], False)


def _in_signed_range(array: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """uint8 as it is, floats as float32 in [-1, 1]."""
    stated = None if value_range is None else tuple(value_range)
    if stated is not None and stated not in _RANGES:
        raise UserError(
            f"value_range={value_range}: it must be one of {', '.join(map(str, _RANGES))}"
        )
    if array.dtype == np.uint8:
        if stated not in (None, (0, 255)):
            raise UserError(
                f"pixels are uint8, in 0..255, but value_range is {value_range}: leave it out, or "
                "give floats"
            )
        return array
    # numpy does not count bfloat16 among its floating types; JAX does.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"pixels are {array.dtype}: give uint8 in 0..255 or floats in [-1, 1]")
    array = array.astype(np.float32)
    low, high = stated or SIGNED
    scale, offset = _RANGES[low, high]
    slack = _TOLERANCE * scale
    if array.size and not (low - slack <= array.min() and array.max() <= high + slack):
        hint = "give uint8, or scale bytes by x / 127.5 - 1, or say value_range=(0, 255)"
        raise UserError(
            f"float pixels must lie in [{low}, {high}], but reach from {array.min():.4g} to "
            f"{array.max():.4g}: {'as value_range says' if stated else hint}"
        )
    if array.size and stated is None and array.min() >= 0:
        warnings.warn(
            "float pixels count as [-1, 1], but all of these lie in [0, 1]: say which it is with "
            "value_range=(0, 1) or value_range=(-1, 1)",
            stacklevel=4,
        )
    return array if (low, high) == SIGNED else array / np.float32(scale) + np.float32(offset)


def checked_bits(
    bits: npt.ArrayLike, shape: TokenizerShape, layout: TokenLayout, *, clips: bool = True
) -> tuple[np.ndarray, bool]:
    """Tokens that a model can decode.

    Args:
      bits: zeros and ones, integers or booleans; ``[batch, row, column, L]`` or
        ``[batch, time, row, column, L]``; or the first bits of tokens, as many as one of
        `TokenizerShape.prefixes` says.
      shape: of the model.
      layout: of its tokens.
      clips: whether the second is allowed.

    Returns:
      uint8 ``[batch, time, row, column, L]``, and whether it was a clip.

    Raises:
      UserError: wrong shape, values other than 0 and 1, tokens that name no code, or a clip that is
        too long.
    """
    array = np.asarray(bits)
    rows, columns = shape.grid
    fits = array.ndim in (4, 5)[: 1 + clips] and array.shape[-3:-1] == (rows, columns)
    if not fits or array.shape[-1] not in shape.prefixes:
        length = listed(shape.prefixes)
        raise UserError(
            f"bits have shape {array.shape}: this model takes [batch, {rows}, {columns}, {length}]"
            + (f" or [batch, time, {rows}, {columns}, {length}]" if clips else " in a stream")
        )
    _check_frames(array, shape)
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
    return (array, True) if array.ndim == 5 else (array[:, None], False)


def checked_dtype(dtype: str) -> str:
    """``float32`` or ``uint8``.

    Raises:
      UserError: it is something else.
    """
    if dtype not in ("float32", "uint8"):
        raise UserError(f"dtype='{dtype}': decode gives float32 or uint8")
    return dtype


def _check_frames(array: np.ndarray, shape: TokenizerShape) -> None:
    if array.ndim != 5:
        return
    if not array.shape[1]:
        raise UserError("a clip of 0 frames: give 1 or more")
    check_length(shape.positions, array.shape[1] - 1, shape.frames)


def least_batch(shape: TokenizerShape) -> int:
    """Examples that a program should at least be given, a power of two.

    XLA for CPUs multiplies matrices of few rows in another order than larger ones. With so many
    examples even a single frame has enough tokens, so that a picture alone, in a batch and as a
    frame of a stream gives the same to the bit.
    """
    return 2 ** (-(-_LEAST_ROWS // shape.tokens) - 1).bit_length()


def filled(array: np.ndarray, shape: TokenizerShape) -> np.ndarray:
    """The examples of an array, its last one repeated until there are `least_batch`."""
    missing = least_batch(shape) - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing > 0 else array


def chunks(count: int, largest: int, least: int = 1) -> Iterator[slice]:
    """Cuts `count` rows into a few sizes, so that few shapes compile.

    Each chunk but the last is a power of two of at most `largest` rows, and so is the last, unless
    it has fewer than `least`.
    """
    start = 0
    while start < count:
        size = largest
        while size > count - start and size > least:
            size //= 2
        yield slice(start, min(start + size, count))
        start += size
