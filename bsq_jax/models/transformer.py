"""Pre-norm transformer blocks, stacked by a scan over layers."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core import cpu
from bsq_jax.core.sharding import split_by_batch
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.attention.self_attention import KVCache, SelfAttention
from bsq_jax.models.attention.windows import Windows
from bsq_jax.models.initializers import bias, kernel, scale
from bsq_jax.models.positions import Rotation

LAYER_NORM_EPSILON = 1e-5  # published
STACK = "blocks"  # the scanned module: all parameters below it are stacked over layers on axis 0

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,  # remat without a policy stores nothing
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes; none of it changes what it computes.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
      remat: what the backward pass computes again instead of storing it, a key of
        `REMAT_POLICIES`: ``none``; ``dots``, everything but the results of linear layers;
        ``full``, everything but the input of each block.
      attention: implementation, see `bsq_jax.models.attention.choice`.
      blocking: how blocked attention cuts a clip.
    """

    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    blocking: Blocking = Blocking.LARGE


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """Layer norm over channels of `dtype`; its statistics are float32 in any precision."""
    return cpu.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        dtype=dtype,
        scale_init=scale("embed"),
        bias_init=bias("embed"),
        name=name,
    )


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., width]`` to the same shape."""
        width = x.shape[-1]
        x = nn.Dense(
            self.hidden,
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("embed", "mlp"),
            bias_init=bias("mlp"),
            name="up",
        )(x)
        x = cpu.gelu(x)
        return nn.Dense(
            width,
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("mlp", "embed"),
            bias_init=bias("embed"),
            name="down",
        )(x)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a layer norm and added to its input.

    Attributes:
      heads: attention heads.
      mlp_ratio: hidden width of the MLP over the width.
      causality: which tokens are visible to a token.
      compute: dtype, rematerialisation and the like.
      streaming: give back keys and values.
      windows: of a frame, that attention stays within; None: it sees whole frames.
    """

    heads: int
    mlp_ratio: float = 4.0
    causality: Causality = EVERYTHING
    compute: Compute = Compute()
    streaming: bool = False
    windows: Windows | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: KVCache | None = None,
        rotation: Rotation | None = None,
        real: jax.Array | None = None,
        regions: jax.Array | None = None,
        shifted: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Maps ``[batch, time, token, width]`` to the same shape; see `Transformer`.

        `shifted` is a bool scalar: whether the windows of this block are the shifted ones.
        """
        x = split_by_batch(x)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        dtype = self.compute.dtype
        attention = SelfAttention(
            self.heads,
            self.causality,
            dtype,
            self.compute.attention,
            self.compute.blocking,
            name="attention",
        )
        seen = layer_norm(dtype, name="norm1")(x)
        if self.windows is None:
            attended, present = attention(seen, rotation, past, real, regions)
        else:
            assert shifted is not None
            assert regions is not None
            seen, rotation, real, regions = _in_windows(
                self.windows, seen, rotation, real, regions, shifted
            )
            attended, present = attention(seen, rotation, past, real, regions)
            attended = self.windows.join(attended, shifted)
        x = x + attended
        x = x + Mlp(hidden, dtype, name="mlp")(layer_norm(dtype, name="norm2")(x))
        return cpu.end_of_layer(split_by_batch(x)), present if self.streaming else None


def _in_windows(
    windows: Windows,
    x: jax.Array,
    rotation: Rotation | None,
    real: jax.Array | None,
    regions: jax.Array,
    shifted: jax.Array,
) -> tuple[jax.Array, Rotation | None, jax.Array | None, jax.Array]:
    """What attention is given for each window in place of each frame."""
    batch, count = x.shape[0], windows.count
    regions = jnp.where(shifted, regions[1], regions[0])
    if len(regions) == 1:
        regions = jnp.broadcast_to(regions, (batch, *regions.shape[1:]))
    if rotation is not None:
        cut = (jnp.tile(windows.cut(x[None], shifted), (batch, 1, 1, 1)) for x in rotation)
        rotation = Rotation(*cut)
    if real is not None:
        real = jnp.repeat(real, count, total_repeat_length=batch * count)
    regions = regions.reshape(batch * count, windows.tokens)
    return windows.cut(x, shifted), rotation, real, regions


class Transformer(nn.Module):
    """A stack of `Block`.

    Attributes:
      layers: number of blocks.
      heads: attention heads.
      mlp_ratio: hidden width of the MLP over the width.
      causality: which tokens are visible to a token.
      compute: dtype, rematerialisation and the like.
      windows: of a frame, that attention stays within, those of every other block shifted; None: it
        sees whole frames.
    """

    layers: int
    heads: int
    mlp_ratio: float = 4.0
    causality: Causality = EVERYTHING
    compute: Compute = Compute()
    windows: Windows | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None = None,
        past: KVCache | None = None,
        streaming: bool = False,
        real: jax.Array | None = None,
        regions: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Maps the tokens of some frames.

        Args:
          x: ``[batch, time, token, width]``.
          rotation: rotary positions of these tokens, if the model has them.
          past: keys and values of the frames before, ``[layer, batch, time, token, head, channel]``
            each, if there are any; with windows ``batch * window`` and the tokens of a window.
          streaming: give back keys and values of these frames.
          real: frames of each example that are not padding, see `attend`.
          regions: which tokens of a frame see each other, int32 ``[batch, token]``, see `attend`;
            None: all. With windows those of `Windows.regions`.

        Returns:
          ``[batch, time, token, width]``, and keys and values of these frames, shaped like `past`;
          None without `streaming`, because they take memory.
        """
        block, unroll = Block, cpu.unrolled_layers(self.layers)
        if self.compute.remat != "none":
            # Inside a loop nothing can be shared between iterations, so the barrier against common
            # subexpressions would only cost time. Without a loop XLA would find what is recomputed
            # and keep it.
            unroll = 1
            policy = REMAT_POLICIES[self.compute.remat]
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=self.layers,
            unroll=unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            *(self.heads, self.mlp_ratio, self.causality, self.compute, streaming),
            windows=self.windows,
            name=STACK,
        )
        shifted = None if self.windows is None else jnp.arange(self.layers) % 2 == 1
        return stack(x, past, rotation, real, regions, shifted)
