"""Losses that compare pixels one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.losses.base import FrozenParams, ReconstructionLoss, check_batch


class L1(ReconstructionLoss):
    """Mean absolute error, in the units of the pixels ([-1, 1])."""

    name = "l1"

    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """See `ReconstructionLoss`; no network is needed."""
        del frozen
        check_batch(original, reconstruction, weights)
        return weighted_mean(jnp.abs(original - reconstruction), weights)


class L2(ReconstructionLoss):
    """Mean squared error, in squared units of the pixels ([-1, 1])."""

    name = "l2"

    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """See `ReconstructionLoss`; no network is needed."""
        del frozen
        check_batch(original, reconstruction, weights)
        return weighted_mean(jnp.square(original - reconstruction), weights)
