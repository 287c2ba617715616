"""Checks that metrics and the training state are finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import NonFiniteError
from bsq_jax.core.sharding import jit_on, replicated
from bsq_jax.core.trees import leaves

_CURES = "try a lower learning rate, a longer warm-up, tighter gradient clipping"
_WORDS = {1: "infinite", 2: "NaN"}  # by code of `StateCheck`
# Parts of a training state by the beginning of their names; the first that fits.
_PARTS = {
    "params/": "parameters",
    "ema/": "averaged parameters",
    "opt_state/": "statistics of the optimizer",
    "adversary/params/": "parameters of the discriminator",
    "adversary/opt_state/": "statistics of the discriminator's optimizer",
    "adversary/": "averages of the discriminator",
    "codebooks/": "averages of the codebooks",
    "rate/params/": "parameters of the prior of the rate",
    "rate/opt_state/": "statistics of its optimizer",
}


def check_finite(step: int, metrics: Mapping[str, Any]) -> None:
    """Raises when a value is NaN or infinite.

    Args:
      step: the step the values belong to.
      metrics: numbers or arrays by name.

    Raises:
      NonFiniteError: with the step, all the terms concerned, and what to try.
    """
    bad = {}
    for name, value in metrics.items():
        array = np.asarray(value, np.float64)
        if not np.isfinite(array).all():
            bad[name] = "NaN" if np.isnan(array).any() else "infinite"
    if bad:
        terms = ", ".join(f"{name} is {what}" for name, what in bad.items())
        raise NonFiniteError(
            f"step {step}: {terms}; {_CURES} or float32, and look at the last pictures for when it "
            "began"
        )


class StateCheck:
    """Finds NaN and infinities in a training state, in one small program.

    The losses do not show all of them: a gradient whose square overflows leaves infinite statistics
    in the optimizer, with which its parameter never moves again, while every loss stays finite.

    Args:
      state: pytree of arrays or of their shapes.
      mesh: of the state; the result is on all its devices.
    """

    def __init__(self, state: Any, mesh: jax.sharding.Mesh):
        self._names = [name for name, leaf in leaves(state).items() if _is_float(leaf)]
        self._codes = jit_on(mesh, _codes, out_shardings=replicated(mesh))

    def codes(self, state: Any) -> jax.Array:
        """Codes of the arrays of floats: int8 ``[array]``, 0 finite, 1 infinite, 2 NaN."""
        return self._codes(state)

    def check(self, step: int, codes: Any) -> None:
        """Waits for the result of `codes`, and raises where an array is not finite.

        Args:
          step: the step after which the state was checked.
          codes: of that state.

        Raises:
          NonFiniteError: with the step, the parts of the state, and what to try.
        """
        parts: dict[str, list[str]] = {}
        for name, code in zip(self._names, np.asarray(codes).tolist(), strict=True):
            if code:
                part = next((_PARTS[p] for p in _PARTS if name.startswith(p)), "state")
                parts.setdefault(part, []).append(f"{name} is {_WORDS[code]}")
        if parts:
            found = ", ".join(
                f"{part} ({names[0]}{f', and {len(names) - 1} more' if names[1:] else ''})"
                for part, names in parts.items()
            )
            raise NonFiniteError(
                f"step {step}: not finite any more: {found}; a gradient was too large: {_CURES} "
                "(optimizer.clip, discriminator.clip) or float32, and look at gradient_norm in "
                "metrics.jsonl; it is not saved, checkpoints before it are sound"
            )


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _codes(state: Any) -> jax.Array:
    def code(leaf: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(jnp.isnan(leaf), 2, jnp.isinf(leaf)), initial=0).astype(jnp.int8)

    found = [code(leaf) for leaf in jax.tree.leaves(state) if _is_float(leaf)]
    return jnp.stack(found) if found else jnp.zeros(0, jnp.int8)
