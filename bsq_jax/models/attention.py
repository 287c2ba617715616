"""Self-attention over the tokens of a clip. Every kind in the package goes through `attend`.

All implementations compute the same; they differ in what they touch on the way. The blocked ones
go through a clip a block of frames at a time and never compute what nobody sees.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.errors import UserError
from bsq_jax.models.causality import EVERYTHING, Causality
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.positions import Rotation, rotate

IMPLEMENTATIONS = ("auto", "dense", "by_head", "blocked", "cudnn", "splash")
# From this many keys on, one head's scores at a time are never slower on a CPU than all heads' at
# once, up to 1.6 times faster, and take a fraction of the memory (benchmarks/README.md).
_BY_HEAD_FROM = 1024
# Blocks that a clip is cut into at most, because each is a part of the program.
_MOST_BLOCKS = 32
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
    backend = jax.default_backend()
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
        that helps.
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
    if chosen not in ("blocked", "cudnn"):
        mask = causality.mask((first, frames), (0, frames), tokens)
        function = {"dense": _dense, "by_head": _by_head, "splash": _splash}[chosen]
        return _flat(function, query, key, value, mask)
    parts = []
    step = -(-query.shape[1] // _MOST_BLOCKS) if causality.limits else query.shape[1]
    for begin in range(first, frames, step):
        end = min(begin + step, frames)
        seen = causality.seen(begin, end, frames)
        mask = causality.mask((begin, end), seen, tokens)
        q = query[:, begin - first : end - first]
        k, v = (x[:, seen[0] : seen[1]] for x in (key, value))
        parts.append(_flat(_cudnn if chosen == "cudnn" else _one_block, q, k, v, mask))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _flat(
    function: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: np.ndarray | None,
) -> jax.Array:
    """Calls a function of ``[batch, token, head, channel]`` arrays, time and tokens in one axis."""
    rows = (rearrange(x, "b t n h d -> b (t n) h d") for x in (query, key, value))
    return function(*rows, mask).reshape(query.shape)


def _one_block(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    # The choice depends on nothing but the span of keys, so that a frame of a stream is computed
    # by the very same operations as in its clip.
    by_head = jax.default_backend() == "cpu" and key.shape[1] >= _BY_HEAD_FROM
    return (_by_head if by_head else _dense)(query, key, value, mask)


def _dense(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    # Heads in front: a CPU then multiplies contiguous matrices.
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in (query, key, value))
    return rearrange(_softmax_attention(q, k, v, mask), "b h n d -> b n h d")


def _by_head(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    rows = tuple(rearrange(x, "b n h d -> (b h) n d") for x in (query, key, value))
    one_head = jax.checkpoint(lambda row: _softmax_attention(row[0], row[1], row[2], mask))
    out = jax.lax.map(one_head, rows)
    return rearrange(out, "(b h) n d -> b n h d", b=query.shape[0])


def _softmax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    """Attention of ``[..., token, channel]`` with a mask ``[query, key]`` or None."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * np.float32(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - 2) + mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, value)


def _cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    seen = None if mask is None else jnp.asarray(mask)[None, None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen, implementation="cudnn")


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    seen = np.ones((query.shape[1], key.shape[1]), np.bool_) if mask is None else mask
    kernel_ = splash.make_splash_mha(
        splash.MultiHeadMask([splash.NumpyMask(seen)] * query.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        interpret=jax.default_backend() != "tpu",
    )
    scaled = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in (scaled, key, value))
    return rearrange(jax.vmap(kernel_)(q, k, v), "b h n d -> b n h d").astype(query.dtype)


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
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
        return out, present
