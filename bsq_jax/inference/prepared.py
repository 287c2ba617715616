"""Models and parameters made ready for inference."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.tokenizer import TokenizerModel


def frame_by_frame(model: TokenizerModel) -> TokenizerModel:
    """The model with blocked attention that computes each frame by itself.

    A frame of a stream, of a short clip and of a long one then comes out the same to the bit.
    """
    usual = model.clone(attention="auto").attention_used(2).name
    if "blocked" in (model.attention, usual) and model.attention in ("auto", "blocked"):
        return model.clone(attention="blocked", blocking=Blocking.PER_FRAME)
    return model


def check_params(model: TokenizerModel, params: Any) -> None:
    """Refuses parameters that are not the model's.

    Raises:
      UserError: one is missing, has another shape, or is one too many.
    """
    shape = model.shape
    pixels = jax.ShapeDtypeStruct((1, 1, shape.image_height, shape.image_width, 3), jnp.float32)
    wanted = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels)["params"])
    want = {jax.tree_util.keystr(k): v.shape for k, v in _leaves(wanted)}
    have = {jax.tree_util.keystr(k): v.shape for k, v in _leaves(params)}
    for key in sorted(want | have):
        if want.get(key) != have.get(key):
            raise UserError(
                f"the weights do not fit the config: {key} is {have.get(key, 'missing')}, "
                f"the config's model has {want.get(key, 'no such parameter')}"
            )


def cast_matrices(params: Any, computation: str) -> Any:
    """Parameters with matrices in the computation's dtype, once instead of at every call.

    Args:
      params: arrays, or their shapes as `jax.ShapeDtypeStruct`.
      computation: name of the dtype.
    """
    dtype = jnp.dtype(computation)

    def cast(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [entry.key for entry in path]
        if names[0] == "to_latent" or names[-1] != "kernel":
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return (leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)).astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
