"""Self-attention over the tokens of a clip. Every kind in the package goes through `attend`.

All implementations compute the same; they differ in what they touch on the way. The blocked ones
go through a clip a block of frames at a time and never compute what nobody sees.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import each_on_its_own
from bsq_jax.core.target import platform
from bsq_jax.models.causality import EVERYTHING, Causality
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.linear import product
from bsq_jax.models.positions import Rotation, rotate

IMPLEMENTATIONS = ("auto", "dense", "by_head", "blocked", "by_frame", "cudnn", "splash")
# From this many keys on, one head's scores at a time are never slower on a CPU than all heads' at
# once, up to 1.6 times faster, and take a fraction of the memory (benchmarks/README.md).
_BY_HEAD_FROM = 1024
# Each block is a part of the program, which takes a while to compile: there are at most so many,
# and where frames are small a block has several, so that it has about as many tokens as this.
_MOST_BLOCKS = 16
_BLOCK_TOKENS = 256
# As by_frame, on any backend all heads at once: no multiplication that is not needed, for counting.
VISIBLE = "visible"
_SPLASH_TOKENS = 128  # splash attention works on tiles of this many tokens


def choose_implementation(
    implementation: str,
    causality: Causality,
    frames: int,
    tokens: int,
    dtype: jnp.dtype = jnp.float32,
) -> str:
    """What ``auto`` stands for on this backend.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      causality: who sees whom.
      frames: frames of the keys.
      tokens: tokens of a frame.
      dtype: of the computation.

    Returns:
      The implementation: on a GPU in 16 bits ``cudnn``; elsewhere ``blocked`` for clips of which
      something is not seen, and for the rest ``by_head`` for long sequences on a CPU, or ``dense``.

    Raises:
      UserError: the implementation cannot run on this backend, or does not take these clips.
    """
    backend = platform()
    low_precision = jnp.dtype(dtype).itemsize == 2
    if implementation == "cudnn" and (backend != "gpu" or not low_precision):
        raise UserError(
            "model.attention=cudnn runs on a GPU with model.dtype=bfloat16: take auto elsewhere"
        )
    if implementation == "splash" and frames * tokens % _SPLASH_TOKENS:
        raise UserError(
            f"model.attention=splash takes multiples of {_SPLASH_TOKENS} tokens, not {frames} x "
            f"{tokens}: take auto"
        )
    if implementation != "auto":
        return implementation
    if backend == "gpu" and low_precision:
        return "cudnn"
    if frames > 1 and causality.limits:
        return "blocked"
    return "by_head" if backend == "cpu" and frames * tokens >= _BY_HEAD_FROM else "dense"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causality: Causality = EVERYTHING,
    implementation: str = "auto",
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

    Returns:
      ``[batch, query time, token, head, channel]`` in the dtype of `query`.

    Raises:
      UserError: see `choose_implementation`.
    """
    frames, tokens = key.shape[1:3]
    chosen = choose_implementation(implementation, causality, frames, tokens, query.dtype)
    first = frames - query.shape[1]  # frame of the first query
    in_blocks = chosen in ("blocked", "by_frame", "cudnn", VISIBLE) and causality.limits
    step = query.shape[1]  # frames of a block
    if in_blocks and chosen in ("by_frame", VISIBLE):
        step = 1
    elif in_blocks:
        step = max(-(-step // _MOST_BLOCKS), -(-_BLOCK_TOKENS // tokens))
    blocks = []
    for begin in range(first, frames, step):
        end = min(begin + step, frames)
        seen = causality.seen(begin, end, frames) if in_blocks else (0, frames)
        queries = slice((begin - first) * tokens, (end - first) * tokens)
        keys = slice(seen[0] * tokens, seen[1] * tokens)
        blocks.append(_Block(queries, keys, causality.mask((begin, end), seen, tokens)))
    if chosen == "cudnn":
        q, k, v = (rearrange(x, "b t n h d -> b (t n) h d") for x in (query, key, value))
        parts = [_cudnn(q[:, b.queries], k[:, b.keys], v[:, b.keys], b.mask) for b in blocks]
        return jnp.concatenate(parts, axis=1).reshape(query.shape)
    # Heads in front, once for all blocks: a CPU then multiplies contiguous matrices.
    rows = [rearrange(x, "b t n h d -> b h (t n) d") for x in (query, key, value)]
    parts = []
    for apart, group in itertools.groupby(blocks, functools.partial(_by_itself, chosen)):
        function: Callable[..., jax.Array] = functools.partial(
            _attend_blocks, blocks=tuple(group), chosen=chosen
        )
        if apart:
            function = each_on_its_own(functools.partial(_one_head_at_a_time, function))
        elif chosen == "splash":
            function = each_on_its_own(function)
        parts.append(function(*rows))
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)
    return rearrange(out, "b h (t n) d -> b t n h d", n=tokens)


class _Block(NamedTuple):
    """Some queries against the span of keys that they see, both as slices of tokens.

    Attributes:
      queries: tokens of the queries.
      keys: tokens of the keys.
      mask: ``[query, key]``, True = sees; None where every query sees every key.
    """

    queries: slice
    keys: slice
    mask: np.ndarray | None


def _by_itself(chosen: str, block: _Block) -> bool:
    """Whether the heads of a block are computed one after the other."""
    # The choice depends on nothing but the span of keys, so that a frame of a stream is computed
    # by the very same operations as in its clip.
    length = block.keys.stop - block.keys.start
    on_cpu = platform() == "cpu"
    in_blocks = chosen in ("blocked", "by_frame")
    return chosen == "by_head" or (in_blocks and on_cpu and length >= _BY_HEAD_FROM)


def _one_head_at_a_time(
    function: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    """Maps a function of ``[token, channel]`` over arrays ``[batch, head, token, channel]``."""
    batch, heads = query.shape[:2]
    rows = tuple(x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value))
    out = jax.lax.map(jax.checkpoint(lambda row: function(*row)), rows)
    return out.reshape(batch, heads, *out.shape[1:])


def _attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    blocks: tuple[_Block, ...],
    chosen: str,
) -> jax.Array:
    """Attention of ``[..., token, channel]`` arrays, the blocks' results one after another."""
    function = _splash if chosen == "splash" else _softmax_attention
    parts = []
    for block in blocks:
        k, v = key[..., block.keys, :], value[..., block.keys, :]
        parts.append(function(query[..., block.queries, :], k, v, block.mask))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


def _softmax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    """Attention of ``[..., token, channel]`` with a mask ``[query, key]`` or None."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * np.float32(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - 2) + mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf)
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


def _cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    """As `_softmax_attention`, of ``[batch, token, head, channel]``."""
    seen = None if mask is None else jnp.asarray(mask)[None, None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen, implementation="cudnn")


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
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
    return jax.vmap(kernel_)(scaled, key, value).astype(query.dtype)


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
        self, x: jax.Array, rotation: Rotation | None = None, past: Past | None = None
    ) -> tuple[jax.Array, Past]:
        """Attends from the tokens of some frames to these and to earlier ones.

        Args:
          x: ``[batch, time, token, width]``.
          rotation: rotary positions of these tokens, if the model has them.
          past: keys and values of the frames before, if there are any.

        Returns:
          ``[batch, time, token, width]``, and keys and values of these frames.
        """
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            features=(3, self.heads, width // self.heads),
            dtype=self.dtype,
            dot_general=product,
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
        out = attend(query, key, value, self.causality, self.implementation)
        out = nn.DenseGeneral(
            features=width,
            axis=(-2, -1),
            dtype=self.dtype,
            dot_general=product,
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
        return out, present
