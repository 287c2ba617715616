"""A masked language model of tokens (paper, section 4.3; MaskGIT, arXiv 2202.04200).

A token of L bits is read as groups of bits, each a word of a small vocabulary: 18 bits in groups of
nine are two words out of 512 (see `bsq_jax.quantizers.words`). The input is the sum of the words'
embeddings, of positions and of a class; the output has a softmax for each group. A word may be the
mask. Tokens of a frame see all tokens of that frame and of the frames before it, so videos are
generated frame by frame.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core import cpu
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.initializers import bias, embedding, kernel
from bsq_jax.models.positions import FramePositions, PositionEmbedding, frame_positions
from bsq_jax.models.transformer import Compute, Transformer, layer_norm
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.quantizers.words import Vocabulary

_POSITIONS = "learned"


@dataclasses.dataclass(frozen=True)
class MaskedLmShape:
    """The numbers that fix a masked language model's parameters.

    Attributes:
      rows: of a frame's tokens.
      columns: of a frame's tokens.
      frames: the most frames that it looks at, the one that it works on included.
      layout: of a token's bits.
      group_size: bits of a group, see `Vocabulary`.
      width: channels of a token.
      layers: blocks.
      heads: attention heads.
      mlp_ratio: hidden width of a block's MLP over `width`.
      classes: number of classes; 0 for none.
    """

    rows: int
    columns: int
    frames: int
    layout: TokenLayout
    group_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    classes: int

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns

    @property
    def bits(self) -> int:
        """Bits of a token, L."""
        return self.layout.length

    @property
    def vocabulary(self) -> Vocabulary:
        """How tokens are read as words."""
        return Vocabulary(self.layout, self.group_size)

    @property
    def words(self) -> tuple[int, ...]:
        """Number of words of each group; the next number stands for the mask."""
        return self.vocabulary.counts

    @property
    def groups(self) -> int:
        """Groups of a token."""
        return len(self.words)

    @property
    def masks(self) -> np.ndarray:
        """The mask of each group, int32 ``[groups]``."""
        return np.array(self.words, np.int32)

    def split(self, logits: jax.Array) -> list[jax.Array]:
        """Logits ``[..., sum of words]`` as one array ``[..., words]`` for each group."""
        return jnp.split(logits, list(itertools.accumulate(self.words))[:-1], axis=-1)


class MaskedLm(nn.Module):
    """See the module's docstring.

    Attributes:
      shape: what fixes the parameters.
      compute: dtype and the like; logits are float32.
    """

    shape: MaskedLmShape
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        words: jax.Array,
        labels: jax.Array,
        frame: jax.Array | None = None,
        *,
        positions: FramePositions | None = None,
        past: KVCache | None = None,
        streaming: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Logits of the words of one frame.

        Args:
          words: int32 ``[batch, time, token, group]``, each below its group's number of words, or
            that number where it is masked.
          labels: int32 ``[batch]``, classes; `MaskedLmShape.classes` or less than 0 for none.
          frame: int32 ``[batch]``, which frame's logits are wanted; None: the last one's.
          positions: of these frames, from `positions_of`; None: they begin at the first.
          past: keys and values of the frames before, as `Transformer` takes them.
          streaming: give back keys and values of these frames.

        Returns:
          float32 ``[batch, token, sum of words]``, see `MaskedLmShape.split`, and the keys and
          values or None.
        """
        shape, dtype = self.shape, self.compute.dtype
        embedded = [
            self._embed(f"words{group}", count + 1)(words[..., group])
            for group, count in enumerate(shape.words)
        ]
        x = functools.reduce(jnp.add, embedded)
        if shape.classes:
            known = (labels >= 0) & (labels < shape.classes)
            index = jnp.where(known, labels, shape.classes)
            x = x + self._embed("classes", shape.classes + 1)(index)[:, None, None]
        time = words.shape[1]
        if positions is None:
            positions = positions_of(shape, time)
        grid = shape.rows, shape.columns
        x = x.reshape(*x.shape[:2], *grid, shape.width)
        x = PositionEmbedding(_POSITIONS, grid, shape.frames, dtype, name="positions")(x, positions)
        x = x.reshape(*x.shape[:2], shape.tokens, shape.width)
        x = layer_norm(dtype, name="norm_pre")(x)
        x, present = Transformer(
            shape.layers,
            shape.heads,
            shape.mlp_ratio,
            Causality(),
            self.compute,
            name="transformer",
        )(x, None, past, streaming)
        if frame is None:
            x = x[:, -1]
        else:
            x = jnp.take_along_axis(x, frame[:, None, None, None], axis=1)[:, 0]
        x = layer_norm(dtype, name="norm_post")(x)
        x = self._dense(shape.width, ("embed", "mlp"), "head_hidden")(x)
        x = layer_norm(dtype, name="head_norm")(cpu.gelu(x))
        x = self._dense(sum(shape.words), ("mlp", None), "head_out")(x)
        return x.astype(jnp.float32), present

    def _embed(self, name: str, count: int) -> nn.Embed:
        return nn.Embed(
            count,
            self.shape.width,
            dtype=self.compute.dtype,
            embedding_init=embedding(None, "embed"),
            name=name,
        )

    def _dense(self, width: int, axes: tuple[str, str | None], name: str) -> nn.Dense:
        return nn.Dense(
            width,
            dtype=self.compute.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel(*axes),
            bias_init=bias(axes[1]),
            name=name,
        )


def positions_of(shape: MaskedLmShape, frames: int, first: int = 0) -> Any:
    """Positions of frames ``first .. first + frames - 1``."""
    return frame_positions(_POSITIONS, first, frames, shape.width, shape.heads)
