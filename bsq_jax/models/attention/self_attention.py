"""Self-attention over the tokens of a clip. Every kind in the package goes through `attend`.

All implementations compute the same; they differ in what they touch on the way. The blocked ones
go through a clip a block of frames at a time and never compute what nobody sees.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core import cpu
from bsq_jax.core.once import say_once
from bsq_jax.core.sharding import each_on_its_own
from bsq_jax.core.target import platform
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import Block, blocks_of, choose_implementation
from bsq_jax.models.attention.cudnn import attention as cudnn_attention
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.positions import Rotation, rotate


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causality: Causality = EVERYTHING,
    implementation: str = "auto",
    real: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention over the tokens of a clip, softmax in float32.

    The queries may be those of the last frames alone, as in streaming.

    Args:
      query: ``[batch, query time, token, head, channel]``.
      key: ``[batch, key time, token, head, channel]``, with at least as many frames.
      value: ``[batch, key time, token, head, channel]``.
      causality: who sees whom.
      implementation: ``dense``: all scores at once and an explicit mask, the reference.
        ``by_head``: the same, one head of one example at a time, computed again in the backward
        pass; the scores stay in a CPU's cache. ``blocked``: the queries of a frame against the
        span of keys that they see, which leaves the masked half out, and one head at a time where
        that helps. ``by_frame``: the same with a block for each frame, however small, so that the
        frame of a stream or of a shorter clip is computed by the very same operations.
        ``cudnn``: blocks as well, each by cuDNN's flash attention (GPU, 16 bits). ``splash``: the
        block-sparse Pallas kernel for TPUs, interpreted elsewhere, which is slow. ``auto``: see
        `choose_implementation`.
      real: int32 ``[batch]``, the number of frames of each example that are not padding; None: all.
        Real frames do not see padding, which comes after them: where no frame sees later ones this
        holds anyway, and nothing is computed for it. What is returned for padding is finite and
        otherwise undefined.

    Returns:
      ``[batch, query time, token, head, channel]`` in the dtype of `query`.

    Raises:
      UserError: see `choose_implementation`.
    """
    (frames, tokens), queries = key.shape[1:3], query.shape[1]
    if causality.streams or frames == 1:
        real = None
    chosen, why = choose_implementation(
        implementation,
        causality,
        frames,
        tokens,
        query.dtype,
        channels=query.shape[-1],
        queries=queries,
        padded=real is not None,
    )
    if why:
        say_once(f"attention: {chosen}; {why}")
    blocks = blocks_of(chosen, causality, frames, tokens, queries)
    if real is not None:
        real = real.astype(jnp.int32) * tokens
    if chosen == "cudnn":
        if real is not None:
            real = jnp.maximum(real, 1)  # an example of padding alone would have no weights
        q, k, v = (rearrange(x, "b t n h d -> b (t n) h d") for x in (query, key, value))
        parts = [
            cudnn_attention(q[:, b.queries], k[:, b.keys], v[:, b.keys], b.mask, real)
            for b in blocks
        ]
        return jnp.concatenate(parts, axis=1).reshape(query.shape)
    # Heads in front, once for all blocks: a CPU then multiplies contiguous matrices.
    rows = [rearrange(x, "b t n h d -> b h (t n) d") for x in (query, key, value)]
    if real is not None:
        rows.append(jnp.broadcast_to(real[:, None], rows[0].shape[:2]))
    parts = []
    for apart, group in itertools.groupby(blocks, functools.partial(_by_itself, chosen)):
        function: Callable[..., jax.Array] = functools.partial(
            _attend_blocks,
            blocks=tuple(group),
            chosen=chosen,
            first=(frames - queries) * tokens,
        )
        if apart:
            function = each_on_its_own(functools.partial(cpu.map_heads, function))
        elif chosen == "splash":
            function = each_on_its_own(function)
        parts.append(function(*rows))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)
    return rearrange(out, "b h (t n) d -> b t n h d", n=tokens)


def _by_itself(chosen: str, block: Block) -> bool:
    """Whether the heads of a block are computed one after the other."""
    # The choice depends on nothing but the span of keys, so that a frame of a stream is computed
    # by the very same operations as in its clip.
    length = block.keys.stop - block.keys.start
    in_blocks = chosen in ("blocked", "by_frame")
    return chosen == "by_head" or (in_blocks and cpu.scores_exceed_cache(length))


def _attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    real: jax.Array | None = None,
    *,
    blocks: tuple[Block, ...],
    chosen: str,
    first: int,
) -> jax.Array:
    """Attention of ``[..., token, channel]`` arrays, the blocks' results one after another.

    Args:
      query: the queries, of which the first is token `first` of the keys.
      key: the keys.
      value: the values.
      real: int32 ``[...]``, the number of keys that are not padding; None: all.
      blocks: which queries see which keys.
      chosen: the implementation.
      first: see `query`.
    """
    function = _splash if chosen == "splash" else _softmax_attention
    parts = []
    for block in blocks:
        q, k, v = query[..., block.queries, :], key[..., block.keys, :], value[..., block.keys, :]
        there = None
        if real is not None:
            places = np.arange(first + block.queries.start, first + block.queries.stop)
            there = tuple(
                jnp.asarray(x.astype(np.int32)).reshape((1,) * real.ndim + (-1,)) < real[..., None]
                for x in (places, np.arange(block.keys.start, block.keys.stop))
            )
        parts.append(function(q, k, v, block.mask, there))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


# Which queries and which keys are not padding, booleans ``[..., token]``. Padding sees padding, so
# that every query sees a key.
_There = tuple[jax.Array, ...] | None


def _softmax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None, there: _There
) -> jax.Array:
    """Attention of ``[..., token, channel]`` with a mask ``[query, key]`` or None."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * np.float32(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - 2) + mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf)
    if there is not None:
        scores = jnp.where(there[0][..., :, None] == there[1][..., None, :], scores, -jnp.inf)
    # The softmax's division comes after the product: it then goes over channels and not over keys.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "...qk,...kd->...qd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(value.dtype)


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None, there: _There
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    seen = np.ones((query.shape[2], key.shape[2]), np.bool_) if mask is None else mask
    kernel_ = splash.make_splash_mha(
        splash.MultiHeadMask([splash.NumpyMask(seen)] * query.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )
    scaled = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    segments = None
    if there is not None:  # the same for every head
        queries, keys = (jnp.asarray(x[:, 0], jnp.int32) for x in there)
        segments = splash.SegmentIds(queries, keys)
    return jax.vmap(kernel_)(scaled, key, value, segments).astype(query.dtype)


# Keys and values of a layer, ``[batch, time, token, head, channel]`` each.
Past = tuple[jax.Array, jax.Array]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases.

    Attributes:
      heads: number of heads; must divide the width.
      causality: who sees whom.
      dtype: dtype of the computation; parameters are float32.
      implementation: see `attend`.
    """

    heads: int
    causality: Causality = EVERYTHING
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None = None,
        past: Past | None = None,
        real: jax.Array | None = None,
    ) -> tuple[jax.Array, Past]:
        """Attends from the tokens of some frames to these and to earlier ones.

        Args:
          x: ``[batch, time, token, width]``.
          rotation: rotary positions of these tokens, if the model has them.
          past: keys and values of the frames before, if there are any.
          real: frames of each example that are not padding, see `attend`.

        Returns:
          ``[batch, time, token, width]``, and keys and values of these frames.
        """
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            features=(3, self.heads, width // self.heads),
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("embed", None, "heads", None),
            bias_init=bias(None, "heads", None),
            name="qkv",
        )(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        present = key, value
        if past is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in zip(past, present, strict=True))
        out = attend(query, key, value, self.causality, self.implementation, real)
        out = nn.DenseGeneral(
            features=width,
            axis=(-2, -1),
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
        return out, present
