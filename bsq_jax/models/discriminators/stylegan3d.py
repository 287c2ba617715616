"""The discriminator for clips: residual blocks of 3x3x3 convolutions with an equalised rate."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bsq_jax.models.discriminators.filters import average_pool, pool_to
from bsq_jax.models.discriminators.layers import EqualisedConv, at_least_float32, leaky
from bsq_jax.models.discriminators.minibatch_stddev import minibatch_stddev

WIDTHS = (1, 2, 4, 4, 4, 4)  # channels before and after each block, in widths
TIME_FACTORS = (1, 1, 2, 2, 2)  # how much each block shortens a clip
SMALLEST = 4  # side of the map that frames of any size are pooled to


class _Block(nn.Module):
    """Pools a clip: two 3x3x3 convolutions beside a 1x1x1 one."""

    outputs: int
    factors: tuple[int, int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, time, row, column, channel]`` to the pooled size with `outputs`."""
        common: dict[str, Any] = {"dtype": self.dtype}
        window = (3, 3, 3)
        skip = EqualisedConv(
            self.outputs, (1, 1, 1), use_bias=False, gain=math.sqrt(0.5), name="skip", **common
        )(average_pool(x, self.factors))
        x = EqualisedConv(self.outputs, window, padding=1, name="conv0", **common)(x)
        x = average_pool(leaky(x, math.sqrt(2)), self.factors)
        x = EqualisedConv(self.outputs, window, padding=1, name="conv1", **common)(x)
        return leaky(x, math.sqrt(0.5)) + skip


class StyleGan3dDiscriminator(nn.Module):
    """One logit for each clip.

    Five blocks halve rows and columns, the last three of them time too. An odd axis loses its
    last place, and an axis of one place is not pooled any more, so that clips of any size work.
    The last layers depend on the size that is left; with `pooled` on its length in time alone,
    since rows and columns, whatever their number, are pooled to 4x4 (`pool_to`).

    Attributes:
      width: channels of the first block; the later ones have two and four times as many.
      stddev_group: clips a group of the minibatch standard deviation.
      dtype: dtype of the blocks; everything from the minibatch standard deviation on, and the
        parameters, are float32.
      pooled: the parameters do not depend on height and width of the frames.
    """

    width: int
    stddev_group: int
    dtype: jnp.dtype = jnp.float32
    pooled: bool = False

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps ``[batch, time, height, width, 3]`` in [-1, 1] to logits ``[batch, 1]`` float32."""
        common: dict[str, Any] = {"dtype": self.dtype}
        x = leaky(EqualisedConv(self.width, (1, 1, 1), name="input", **common)(pixels))
        for index, (multiple, time_factor) in enumerate(zip(WIDTHS[1:], TIME_FACTORS, strict=True)):
            wanted = (time_factor, 2, 2)
            time, rows, columns = (
                factor if size >= factor else 1
                for factor, size in zip(wanted, x.shape[1:-1], strict=True)
            )
            factors = (time, rows, columns)
            x = _Block(multiple * self.width, factors, name=f"block{index}", **common)(x)
        common["dtype"] = at_least_float32(self.dtype)
        x = x.astype(common["dtype"])
        if self.pooled:
            x = pool_to(x, SMALLEST)
        x = minibatch_stddev(x, self.stddev_group)
        last = WIDTHS[-1] * self.width
        x = EqualisedConv(last, (3, 3, 3), padding=1, name="conv", **common)(x)
        x = rearrange(leaky(x), "b t h w c -> b (c t h w)")
        x = leaky(EqualisedConv(last, name="fc", **common)(x), math.sqrt(2))
        return EqualisedConv(1, name="out", **common)(x)
