"""Frames of pixels to patches and back."""

from __future__ import annotations

import jax
from einops import rearrange

from bsq_jax.core.array_checks import check_array

CHANNELS = 3


def patchify(pixels: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Cuts frames into patches.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      patch: (height, width) of a patch in pixels.

    Returns:
      ``[batch, time, row, column, channel * height * width]``, (channel, row, column) in a patch.

    Raises:
      ValueError: other axes, or sides that are not multiples of the patch.
    """
    check_array("pixels", pixels, "batch", "time", "height", "width", "channel", kind="numbers")
    high, wide = patch
    if pixels.shape[2] % high or pixels.shape[3] % wide:
        raise ValueError(
            f"frames of {pixels.shape[2]}x{pixels.shape[3]} pixels cannot be cut into patches of "
            f"{high}x{wide}"
        )
    return rearrange(pixels, "b t (h p) (w q) c -> b t h w (c p q)", p=high, q=wide)


def unpatchify(patches: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Inverse of `patchify`."""
    return rearrange(patches, "b t h w (c p q) -> b t (h p) (w q) c", p=patch[0], q=patch[1])
