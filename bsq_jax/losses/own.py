"""Losses of the user's own, which ``config.loss.terms`` names; see docs/extending/loss.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.core.own_parts import OwnPart, inherits, parse_weighted
from bsq_jax.losses.base import FrozenParams, ReconstructionLoss, check_batch

_BASE = f"{ReconstructionLoss.__module__}:{ReconstructionLoss.__name__}"


@dataclasses.dataclass(frozen=True)
class FunctionLoss(ReconstructionLoss):
    """The mean over frames of what a function says of each.

    Attributes:
      name: of the term in the metrics of a step.
      function: of originals and reconstructions, float pixels in [-1, 1] ``[batch, time, height,
        width, 3]``; gives ``[batch, time]``.
      part: where it comes from, for messages.
    """

    name: str  # type: ignore[misc]  # the base's is of the class
    function: Callable[[jax.Array, jax.Array], jax.Array]
    part: OwnPart

    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """See `ReconstructionLoss`; no network is needed.

        Raises:
          UserError: the function returns another shape.
        """
        del frozen
        check_batch(original, reconstruction, weights)
        values = jnp.asarray(self.function(original, reconstruction))
        if values.shape != original.shape[:2]:
            raise self.part.error(
                f"it returned shape {values.shape}: it must be [batch, time], here "
                f"{original.shape[:2]}, a value for each frame"
            )
        return weighted_mean(values.astype(jnp.float32), weights)


def make_own_loss(term: str) -> ReconstructionLoss:
    """The loss that ``0.5*module:attribute(key=value)`` names.

    Raises:
      UserError: it is neither a function nor a `ReconstructionLoss`, or takes other arguments.
    """
    weight, part = parse_weighted("loss.terms", term)
    if isinstance(part.load(), type):
        if not inherits(part.load(), _BASE):
            raise part.error(f"a class must inherit from {_BASE}; or give a function")
        made: ReconstructionLoss = part.make(weight)
        return made
    return FunctionLoss(
        weight=weight,
        name=part.attribute,
        function=part.bound("original", "reconstruction"),
        part=part,
    )
