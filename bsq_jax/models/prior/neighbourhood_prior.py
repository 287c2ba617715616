"""A prior of frames of any size: each token looks at a neighbourhood in its frame and those before.

Rows and columns within ``reach`` of a token, in as many frames as ``window``, its own included. Of
its own frame it sees what earlier steps took (`bsq_jax.models.prior.shape.step_at`), of the frames
before all. Where a token lies in the frame nobody knows; keys outside of it are not seen. So the
parameters do not depend on the size, and neither does what a token costs.

Attention within a neighbourhood: Hassani et al., CVPR 2023; local autoregressive context and its
wavefront: as in PixelCNN (van den Oord et al., 2016) and video codecs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.models.prior.block import UNSEEN, BlockNumbers
from bsq_jax.models.prior.integer_arithmetic import expanded, lowering
from bsq_jax.models.prior.network import PriorNetwork
from bsq_jax.models.prior.shape import PriorShape, step_at

KINDS = 2
"""Rows of a token: query and content, in this order."""


class Places(NamedTuple):
    """Where rows lie, whole numbers of shapes that broadcast.

    Attributes:
      kind: 0 for query rows, which see earlier steps of their frame, 1 for content rows, which see
        their own too.
      frame: from 0 on.
      row: in the frame.
      column: in the frame.
    """

    kind: jax.Array | np.ndarray
    frame: jax.Array | np.ndarray
    row: jax.Array | np.ndarray
    column: jax.Array | np.ndarray


def offsets_of(shape: PriorShape) -> np.ndarray:
    """Where keys may lie that a row sees: int32 ``[key, 3]``, (frames back, rows and columns on).

    Those that no row sees are left out.
    """
    rows, columns = shape.reach
    found = [
        (back, row, column)
        for back in range(shape.window)
        for row in range(-rows, rows + 1)
        for column in range(-columns, columns + 1)
        # Rows below and, in the own row, what is to the right come later in raster order.
        if back or shape.order != "raster" or (row, column) <= (0, 0)
    ]
    return np.array(found, np.int32)


def visible(
    shape: PriorShape,
    places: Places,
    size: tuple[jax.Array | int, ...],
    offset: jax.Array | np.ndarray,
) -> jax.Array:
    """Whether rows see the key at an offset.

    Args:
      shape: of the prior.
      places: of the rows.
      size: rows and columns of the frames.
      offset: one of `offsets_of`, ``[3]``, or several, ``[3, ...]`` that broadcast.

    Returns:
      bool, of the shape of the places and the offset.
    """
    row, column = places.row + offset[1], places.column + offset[2]
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    own = step_at(shape.order, places.row, places.column, shape.reach)
    earlier = step_at(shape.order, row, column, shape.reach) < own + places.kind
    return inside & (places.frame >= offset[0]) & (earlier | (offset[0] > 0))


class NeighbourhoodPrior(PriorNetwork):
    """The network, on whole clips; `neighbourhood_steps` computes the same for some tokens.

    Attributes:
      shape: what fixes the parameters.
    """

    def __call__(self, signs: jax.Array) -> jax.Array:
        """Logits of all bits of clips, each from its beginning.

        Memory is linear in the number of tokens: keys are shifted offset by offset.

        Args:
          signs: float32 ``[batch, time, row, column, bit]``, of any size.

        Returns:
          Whole numbers, `bsq_jax.models.prior.token_bits.LOGIT` a nat, of the same shape.
        """
        shape = self.shape
        _, time, rows, columns, _ = signs.shape
        before = jnp.concatenate([jnp.zeros_like(signs[:, :1]), signs[:, :-1]], axis=1)
        numbers = self.numbers()
        query, content = numbers.query_rows(before), numbers.content_rows(signs, before)
        axes = np.ogrid[:KINDS, :1, :time, :rows, :columns]
        margins = ((shape.window - 1, 0), *((reach, reach) for reach in shape.reach))
        for layer, block in enumerate(numbers.blocks):
            queries, keys, values = block.heads_of(content, 0, 3)
            (of_query,) = block.heads_of(query, 0, 1)
            # Nothing looks at the content rows behind the last block.
            kinds = 1 if layer == shape.layers - 1 else KINDS
            mixed = _attend(
                block,
                jnp.stack([of_query, queries][:kinds]),
                (_shifted(keys, margins), _shifted(values, margins)),
                functools.partial(
                    visible, shape, Places(axes[0][:kinds], *axes[2:]), (rows, columns)
                ),
                shape,
            )
            query = block.finish(query, mixed[0])
            if kinds == KINDS:
                content = block.finish(content, mixed[1])
        return numbers.bits(numbers.contexts(query), signs, shape.layout)


def near_of(block: BlockNumbers, shape: PriorShape) -> jax.Array:
    """Bias of the scores at each of `offsets_of`, ``[key, head]``."""
    back, row, column = offsets_of(shape).T
    return block.near[:, back, row + shape.reach[0], column + shape.reach[1]].T


At = Callable[[jax.Array], jax.Array]
"""Something of the key at an offset."""


def _shifted(x: jax.Array, margins: tuple[tuple[int, int], ...]) -> At:
    """``[batch, time, row, column, head, channel]`` as seen from each token at an offset."""
    padded = jnp.pad(x, ((0, 0), *margins, (0, 0), (0, 0)))
    first = jnp.array([before for before, _ in margins])
    back = jnp.array([-1, 1, 1])

    def at(offset: jax.Array) -> jax.Array:
        start = first + back * offset
        return jax.lax.dynamic_slice(padded, (0, *start, 0, 0), x.shape)

    return at


def _attend(
    block: BlockNumbers, query: jax.Array, keys: tuple[At, At], visible_at: At, shape: PriorShape
) -> jax.Array:
    """Attention, one offset after the other.

    Args:
      block: of which layer.
      query: ``[kind, batch, time, row, column, head, channel]``.
      keys: keys and values, ``[batch, time, row, column, head, channel]`` at each offset.
      visible_at: bool ``[kind, ...]`` that broadcasts to the rows, at each offset.
      shape: of the prior.

    Returns:
      ``[kind, batch, time, row, column, width]``.
    """
    key_at, value_at = keys
    offsets = jnp.asarray(offsets_of(shape))

    # Kind by kind: XLA on CPU (JAX 0.10.2) miscomputes large sums of products over the last axis,
    # multiplied by a number, where the first factor is broadcast.
    # What is shifted is computed again in the backward pass: kept, it would be a copy an offset.
    @jax.checkpoint
    def score(offset: jax.Array, near: jax.Array) -> jax.Array:
        key = key_at(offset)
        sums = jnp.stack([jnp.sum(one * key, axis=-1) for one in query])
        made = block.scaled(sums) + expanded(near, sums)
        return jnp.where(visible_at(offset)[..., None], made, UNSEEN)

    @jax.checkpoint
    def weighed(offset: jax.Array, share: jax.Array) -> jax.Array:
        value = value_at(offset)
        return jnp.stack([one[..., None] * value for one in share])

    _, scores = jax.lax.scan(
        lambda _, item: (None, score(*item)), None, (offsets, near_of(block, shape))
    )
    shares = block.shares(query, scores, lowering(shape.keys))
    mixed, _ = jax.lax.scan(
        lambda sums, item: (sums + weighed(*item), None),
        jnp.zeros_like(query),
        (offsets, shares[1:]),
    )
    return block.mean(shares, mixed)
