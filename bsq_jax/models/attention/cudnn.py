"""cuDNN's flash attention: what it takes, and the call.

JAX raises while a program is traced, and XLA when it is compiled, for what cuDNN does not take. So
what `attention=auto` picks is decided by the same rules beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.target import cuda_capability, cudnn_version, platform

_AMPERE, _HOPPER = (8, 0), (9, 0)


def refusal(dtype: jnp.dtype, channels: int, lengths: Iterable[tuple[int, int]]) -> str:
    """Why cuDNN's flash attention cannot be used, in a few words; empty where it can.

    The rules are those of JAX (``check_is_flash_attention``) for training, which are the stricter
    ones, so that a model is evaluated as it is trained; and that flash attention begins with
    Ampere, which JAX leaves to cuDNN.

    Args:
      dtype: of queries, keys and values.
      channels: of a head.
      lengths: tokens of the queries and of the keys of each call.
    """
    if platform() != "gpu":
        return "it runs on NVIDIA GPUs"
    capability, version = cuda_capability(), cudnn_version()
    if capability is None:
        return "it runs on NVIDIA GPUs, and this is another one"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not in {jnp.dtype(dtype).name}"
    card = ".".join(map(str, capability))
    if capability < _AMPERE:
        return f"it needs compute capability 8.0 (Ampere), and this GPU has {card}"
    if not version:
        return "cuDNN is not installed"
    if capability == (10, 3) and version < 91100:
        return f"compute capability {card} needs cuDNN 9.11"
    most = 256 if capability >= _HOPPER else 128
    if channels > most or channels % 8:
        return (
            f"heads have {channels} channels, and on compute capability {card} it takes multiples "
            f"of 8 up to {most}"
        )
    for queries, keys in lengths:
        # JAX hands every call a bias, an empty one where there is no mask, and cuDNN has no
        # gradient with a bias for odd lengths.
        if queries % 2 or keys % 2:
            return f"it takes even numbers of tokens, not {queries} queries with {keys} keys"
    return ""


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: np.ndarray | None,
    real: jax.Array | None,
    pairs: jax.Array | None = None,
) -> jax.Array:
    """Flash attention of ``[batch, token, head, channel]``.

    Args:
      query: the queries.
      key: the keys.
      value: the values.
      mask: booleans ``[query, key]``, True = visible; None: every key is visible to every query.
      real: int32 ``[batch]``, so many keys of each example are visible, the first ones; None: all.
      pairs: booleans ``[batch, query, key]``, True = visible; None: all that `mask` allows.
    """
    visible = None if mask is None else jnp.asarray(mask)[None, None]
    if pairs is not None:
        visible = pairs[:, None] if visible is None else visible & pairs[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=visible, key_value_seq_lengths=real, implementation="cudnn"
    )
