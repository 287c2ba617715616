"""Frames of pixels to patches and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.array_checks import check_array

CHANNELS = 3


def patchify(pixels: jax.Array, patch: tuple[int, int], time: int = 1) -> jax.Array:
    """Cuts frames into patches.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      patch: (height, width) of a patch in pixels.
      time: frames of a patch.

    Returns:
      ``[batch, time / frames, row, column, frames * channel * height * width]``, (frame, channel,
      row, column) in a patch.

    Raises:
      ValueError: other axes, or sides that are not multiples of the patch.
    """
    check_array("pixels", pixels, "batch", "time", "height", "width", "channel", kind="numbers")
    high, wide = patch
    if pixels.shape[2] % high or pixels.shape[3] % wide or pixels.shape[1] % time:
        frames = f"{pixels.shape[1]} frames" if pixels.shape[1] % time else "frames"
        raise ValueError(
            f"{frames} of {pixels.shape[2]}x{pixels.shape[3]} pixels cannot be cut into patches of "
            f"{high}x{wide}" + (f" over {time} frames" if time > 1 else "")
        )
    pattern = "b (t s) (h p) (w q) c -> b t h w (s c p q)"
    return rearrange(pixels, pattern, s=time, p=high, q=wide)


def unpatchify(patches: jax.Array, patch: tuple[int, int], time: int = 1) -> jax.Array:
    """Inverse of `patchify`."""
    pattern = "b t h w (s c p q) -> b (t s) (h p) (w q) c"
    return rearrange(patches, pattern, s=time, p=patch[0], q=patch[1])


def whole_groups(pixels: jax.Array, time: int) -> jax.Array:
    """Frames filled up in front with copies of the first, so that they divide into groups.

    Of a clip of 1 + k x `time` frames the first frame becomes a group of its own; nothing is added
    to later frames of a stream, which are whole groups.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      time: frames of a group.
    """
    missing = -pixels.shape[1] % time
    if not missing:
        return pixels
    return jnp.concatenate([jnp.repeat(pixels[:, :1], missing, axis=1), pixels], axis=1)


def ended_with_last(pixels: Any, time: int) -> Any:
    """Clips filled up at the end with their last frame, to a length of 1 + k x `time` frames.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      time: frames of a group.
    """
    missing = (1 - pixels.shape[1]) % time
    if not missing:
        return pixels
    padding = ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))
    return (np if isinstance(pixels, np.ndarray) else jnp).pad(pixels, padding, mode="edge")
