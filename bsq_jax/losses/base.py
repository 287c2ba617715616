"""What a loss of reconstructions is, and the weighted sum of several.

One of the user's own is named in ``config.loss.terms``, see docs/extending/loss.md.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp

FrozenParams = Mapping[str, Any]  # parameters of frozen networks by the name of the network


class FrozenNetwork(NamedTuple):
    """A network that a loss looks through and that is not trained.

    Attributes:
      name: where its parameters are in `FrozenParams`. Losses that need the same network give it
        the same name, and it is loaded once.
      load: reads the parameters, a tree of numpy arrays; raises `UserError` where that fails.
      abstract: their shapes and dtypes, reading nothing.
    """

    name: str
    load: Callable[[], Any]
    abstract: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class ReconstructionLoss(abc.ABC):
    """A term of the generator's loss that compares reconstructions with their originals.

    Attributes:
      name: of the term in the metrics of a step.
      weight: its factor in the generator's loss. A loss of weight 0 has no gradient.
    """

    name: ClassVar[str]

    weight: float

    @property
    def needs(self) -> FrozenNetwork | None:
        """The frozen network that it looks through; None for none."""
        return None

    @property
    def start(self) -> int:
        """The step of the run from which it counts; before, it is 0 and costs nothing."""
        return 0

    @abc.abstractmethod
    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """The loss of a batch, unweighted.

        Args:
          original: float pixels in [-1, 1], ``[batch, time, height, width, 3]``.
          reconstruction: like `original`. It is not clamped: a clamp would remove the gradient of
            every pixel outside [-1, 1].
          weights: of the frames, float32 ``[batch, time]``, 0 for padding; None: all count alike.
          frozen: parameters of the frozen networks.

        Returns:
          A float32 scalar: the mean over the real frames of the (global) batch.
        """


def check_batch(original: jax.Array, reconstruction: jax.Array, weights: jax.Array | None) -> None:
    """Checks the arrays that a `ReconstructionLoss` is given, when it is traced.

    Raises:
      AssertionError: their shapes or dtypes are not those that `ReconstructionLoss` declares.
    """
    chex.assert_shape(original, (None, None, None, None, 3))
    chex.assert_equal_shape((original, reconstruction))
    chex.assert_type((original, reconstruction), float)
    if weights is not None:
        chex.assert_shape(weights, original.shape[:2])
        chex.assert_type(weights, float)


def weighted_sum(
    losses: Sequence[ReconstructionLoss],
    original: jax.Array,
    reconstruction: jax.Array,
    weights: jax.Array | None,
    frozen: FrozenParams,
    step: jax.Array | int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of several losses times their weights, and each of them unweighted.

    Args:
      losses: the losses.
      original: as of `ReconstructionLoss`.
      reconstruction: likewise.
      weights: likewise.
      frozen: likewise.
      step: of the run; losses that start later are 0 until then. None: all count.

    Returns:
      ``(sum, values)``: a float32 scalar and scalars by the names of the losses. Those of weight 0
      are among the values only.

    Raises:
      AssertionError: shapes or dtypes are not those that `ReconstructionLoss` declares.
    """
    check_batch(original, reconstruction, weights)

    def value(loss: ReconstructionLoss) -> jax.Array:
        arguments = original, reconstruction, weights, frozen
        if step is None or not loss.start:
            return loss(*arguments)
        return jax.lax.cond(step >= loss.start, loss, lambda *_: jnp.float32(0), *arguments)

    values = {loss.name: value(loss) for loss in losses}
    chex.assert_shape(list(values.values()), ())
    total = jnp.float32(0)
    for loss in losses:
        if loss.weight:
            total += loss.weight * values[loss.name]
    return total, values
