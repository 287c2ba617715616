"""Splash attention: the block-sparse Pallas kernel for TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.target import platform
from bsq_jax.models.attention.softmax import Labels


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: np.ndarray | None = None,
    labels: Labels | None = None,
) -> jax.Array:
    """As `softmax_attention`, of ``[batch, head, token, channel]``."""
    # Pallas takes a while to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    visible = np.ones((query.shape[2], key.shape[2]), np.bool_) if mask is None else mask
    kernel_ = splash.make_splash_mha(
        splash.MultiHeadMask([splash.NumpyMask(visible)] * query.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )
    scaled = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    segments = None
    if labels is not None:  # the same for every head
        queries, keys = (jnp.asarray(x[:, 0], jnp.int32) for x in labels)
        segments = splash.SegmentIds(queries, keys)
    return jax.vmap(kernel_)(scaled, key, value, segments).astype(query.dtype)
