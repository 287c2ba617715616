"""A tokenizer whose parameters stay: tokens of a batch, and pixels of tokens, on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.sharding import abstract_replicated, replicate
from bsq_jax.models.tokenizer import TokenizerModel

Batch = Mapping[str, jax.Array]
_PARAMS = "tokenizer"  # its parameters among the frozen ones


@dataclasses.dataclass(frozen=True)
class FrozenTokenizer:
    """A tokenizer whose parameters stay.

    Attributes:
      model: the network.
      params: its parameters, on the host.
    """

    model: TokenizerModel
    params: Any

    def load(self, mesh: Mesh) -> dict[str, Any]:
        """The parameters, on every device: what the other methods take as `frozen`."""
        return {_PARAMS: replicate(self.params, mesh)}

    def abstract(self, mesh: Mesh) -> dict[str, Any]:
        """Shapes and shardings of what `load` gives; allocates nothing."""
        shape = self.model.shape
        pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
        boxed = jax.eval_shape(lambda: self.model.init(jax.random.key(0), pixels))["params"]
        return {_PARAMS: abstract_replicated(nn.meta.unbox(boxed), mesh)}

    def tokens(self, batch: Batch, frozen: Mapping[str, Any]) -> jax.Array:
        """As `grids`, ``[batch, time, token, L]``."""
        return rearrange(self.grids(batch, frozen), "b t h w l -> b t (h w) l")

    def grids(self, batch: Batch, frozen: Mapping[str, Any]) -> jax.Array:
        """Bits of a batch, uint8 ``[batch, time, row, column, L]``.

        Args:
          batch: has ``pixels`` uint8 ``[batch, time, height, width, 3]``, of any height and width
            that are multiples of the patch, or already ``bits`` uint8
            ``[batch, time, row, column, L]``. There may be ``frames`` int32 ``[batch]``, the real
            frames of each clip, which see no padding.
          frozen: of `load`.
        """
        if "bits" in batch:
            return batch["bits"]
        pixels = to_float(batch["pixels"])
        time = pixels.shape[1]
        # A tokenizer codes clips of so many frames, an image model each frame by itself.
        segment = min(self.model.shape.frames, time)
        frames, parts = batch.get("frames"), []
        for first in range(0, time, segment):
            part = pixels[:, first : first + segment]
            real = None if frames is None else jnp.clip(frames - first, 0, part.shape[1])
            parts.append(self._apply(frozen, part, "encode", real).bits)
        return jnp.concatenate(parts, axis=1)

    def pixels(
        self, bits: jax.Array, frozen: Mapping[str, Any], grid: tuple[int, int] | None = None
    ) -> jax.Array:
        """Pixels uint8 ``[batch, time, height, width, 3]`` of what `tokens` gives.

        Args:
          bits: uint8 ``[batch, time, token, L]``.
          frozen: of `load`.
          grid: (rows, columns) of a frame; None: those of the model's own size.
        """
        rows, columns = grid or self.model.shape.grid
        bits = rearrange(bits, "b t (h w) l -> b t h w l", h=rows, w=columns)
        segment = min(self.model.shape.frames, bits.shape[1])
        parts = [
            self._apply(frozen, bits[:, first : first + segment], "decode")
            for first in range(0, bits.shape[1], segment)
        ]
        return to_uint8(jnp.concatenate(parts, axis=1))

    def _apply(
        self, frozen: Mapping[str, Any], x: jax.Array, method: str, real: jax.Array | None = None
    ) -> Any:
        return self.model.apply({"params": frozen[_PARAMS]}, x, real, method=method)
