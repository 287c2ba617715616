"""The discriminator for frames: StyleGAN2's residual one (Karras et al. 2020, section 3 and B)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bsq_jax.core.errors import UserError
from bsq_jax.models.discriminators.filters import blur, blur_half, pool_to
from bsq_jax.models.discriminators.layers import EqualisedConv, at_least_float32, leaky
from bsq_jax.models.discriminators.minibatch_stddev import minibatch_stddev

SMALLEST = 4  # the side at which halving ends
LARGEST_END = 128  # pixels; the linear layer after them would be the larger part of the network


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes a frame passes through: halved while both sides are even and above 4.

    Raises:
      UserError: a frame that cannot be halved, or ends with more than 128 pixels.
    """
    found = [(height, width)]
    while min(found[-1]) > SMALLEST and not (found[-1][0] % 2 or found[-1][1] % 2):
        found.append((found[-1][0] // 2, found[-1][1] // 2))
    if len(found) == 1 or math.prod(found[-1]) > LARGEST_END:
        raise UserError(
            f"discriminator stylegan halves frames of {height}x{width} down to "
            f"{found[-1][0]}x{found[-1][1]} only: choose sides above 4 with larger powers of two "
            f"in them, discriminator.pooling=adaptive or discriminator.name=patchgan"
        )
    return found


def adaptive_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes that set blocks and channels where the last map is pooled: halved down to 4.

    An odd side loses its last place. They are those of `sizes` where both are powers of two.

    Raises:
      UserError: a frame that cannot be halved once.
    """
    found = [(height, width)]
    while min(found[-1]) // 2 >= SMALLEST:
        found.append((found[-1][0] // 2, found[-1][1] // 2))
    if len(found) == 1:
        raise UserError(
            f"discriminator stylegan halves frames of at least {2 * SMALLEST} pixels a side, but "
            f"model.image_size is {height}x{width}: make it larger"
        )
    return found


def check_frames(height: int, width: int, built_for: tuple[int, int]) -> None:
    """Checks that the blocks leave a place of frames of this size.

    Args:
      height: of the frames in pixels.
      width: likewise.
      built_for: as in `StyleGanDiscriminator`.

    Raises:
      UserError: they do not; as `adaptive_sizes`.
    """
    least = 2 ** (len(adaptive_sizes(*built_for)) - 1)
    if min(height, width) < least:
        raise UserError(
            f"discriminator stylegan halves frames of model.image_size {built_for[0]}x"
            f"{built_for[1]} until {least} pixels are one, so it cannot take frames of {height}x"
            f"{width}: leave sizes below {least} out of data.sizes, lower model.image_size or "
            "choose discriminator.name=patchgan"
        )


class _Block(nn.Module):
    """Halves a frame: two 3x3 convolutions beside a 1x1 one, both behind a blur."""

    outputs: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, row, column, channel]`` to ``[batch, row // 2, column // 2, outputs]``."""
        common: dict[str, Any] = {"dtype": self.dtype}
        skip = EqualisedConv(
            self.outputs, (1, 1), use_bias=False, gain=math.sqrt(0.5), name="skip", **common
        )(blur_half(x))
        x = EqualisedConv(x.shape[-1], (3, 3), padding=1, name="conv0", **common)(x)
        x = blur(leaky(x, math.sqrt(2)), padding=2)
        x = EqualisedConv(self.outputs, (3, 3), stride=2, name="conv1", **common)(x)
        return leaky(x) + skip  # the gain sqrt(2) and the sum's sqrt(0.5) cancel


class StyleGanDiscriminator(nn.Module):
    """A logit for each frame; frames of a clip are samples like any other.

    Sides that are not powers of two, or not equal, are halved while both are even and above 4; the
    last linear layer takes what is left. The resolution that sets the channels is the longer side.

    With `built_for` the network takes frames of any size, with the blocks of that one, and its
    parameters do not depend on theirs: what the blocks leave is pooled to 4x4 before the last
    layers (`pool_to`). Frames of powers of two that it is built for have the parameters and the
    logits that they have without it. The smallest side is that which leaves one place, 64 pixels
    for 256x256.

    Attributes:
      channel_base: channels at a resolution, times the resolution.
      channel_max: the most channels.
      stddev_group: samples a group of the minibatch standard deviation.
      dtype: dtype of the blocks; everything from the minibatch standard deviation on, and the
        parameters, are float32.
      built_for: height and width in pixels that set the number of blocks and their channels; None:
        those of the frames, which then all have one size.
    """

    channel_base: int
    channel_max: int
    stddev_group: int
    dtype: jnp.dtype = jnp.float32
    built_for: tuple[int, int] | None = None

    def channels(self, size: tuple[int, int]) -> int:
        """Channels of frames of this size."""
        return max(1, min(self.channel_base // max(size), self.channel_max))

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps ``[batch, time, height, width, 3]`` in [-1, 1] to logits ``[batch, time]`` float32.

        Raises:
          UserError: see `sizes` and, with `built_for`, `check_frames`.
        """
        batch, time, height, width, _ = pixels.shape
        if self.built_for is None:
            through = sizes(height, width)
        else:
            check_frames(height, width, self.built_for)
            through = adaptive_sizes(*self.built_for)
        common: dict[str, Any] = {"dtype": self.dtype}
        x = rearrange(pixels, "b t h w c -> (b t) h w c")
        x = EqualisedConv(self.channels(through[0]), (1, 1), name="fromrgb", **common)(x)
        x = leaky(x, math.sqrt(2))
        for before, after in itertools.pairwise(through):
            x = _Block(self.channels(after), name=f"b{max(before)}", **common)(x)
        common["dtype"] = at_least_float32(self.dtype)
        x = x.astype(common["dtype"])
        if self.built_for is not None:
            x = pool_to(x, SMALLEST)
        x = minibatch_stddev(x, self.stddev_group)
        channels = self.channels(through[-1])
        x = EqualisedConv(channels, (3, 3), padding=1, name="conv", **common)(x)
        x = rearrange(leaky(x, math.sqrt(2)), "n h w c -> n (c h w)")
        x = leaky(EqualisedConv(channels, name="fc", **common)(x), math.sqrt(2))
        return EqualisedConv(1, name="out", **common)(x).reshape(batch, time)
