"""Positions of the user's own, which ``config.model.positions`` names.

A function of frame numbers is called on the host, for clips and streams alike, so that a frame has
the same numbers in both; a Flax module has parameters and is part of the network. Both give what is
added to the tokens; see docs/extending/positions.md.

Models of others name their positions too, with arguments. So no function is called that was not
written to be positions, which `position_embedding` says of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.own_parts import parse_own

_KEY = "model.positions"


class PositionFunction:
    """A function that `position_embedding` marks; called as the function itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *given: Any, **arguments: Any) -> Any:
        """What the function returns."""
        return self._function(*given, **arguments)


def position_embedding(function: Callable[..., Any]) -> PositionFunction:
    """Decorator of a function of your own that ``model.positions`` may name.

    Args:
      function: of frame numbers ``[frame]``, (rows, columns) of a frame and the channels of a
        token, by place, and keyword arguments; it returns ``[frame, row, column, width]``.
    """
    return PositionFunction(function)


def own_module(kind: str) -> nn.Module | None:
    """The Flax module that ``module:attribute`` names; None if it names a function.

    Raises:
      UserError: it cannot be loaded, or is neither, or a function that is not marked.
    """
    part = parse_own(_KEY, kind)
    found = part.load()
    if isinstance(found, PositionFunction):
        return None
    if callable(found) and not isinstance(found, type):
        raise part.error(
            f"{part.attribute} is not marked as positions: write @position_embedding, from "
            "bsq_jax.models.own_positions, above the function"
        )
    made: nn.Module = part.make_module("flax.linen.module:Module")
    return made


def own_sums(
    kind: str, number: np.ndarray | jax.Array, grid: tuple[int, int], width: int
) -> np.ndarray:
    """What a function of the user's own adds to the tokens of some frames.

    Args:
      kind: ``module:attribute``.
      number: int32 ``[frame]``, places of the frames, from 0.
      grid: (rows, columns) of a frame.
      width: channels of a token.

    Returns:
      float32 ``[frame, row, column, width]``; width 0 where `kind` names a module.

    Raises:
      UserError: it cannot be loaded, or returns another shape.
    """
    number = np.asarray(number)
    if own_module(kind) is not None:
        return np.zeros((len(number), *grid, 0), np.float32)
    part = parse_own(_KEY, kind)
    function = part.bound(number, grid, width)
    with jax.ensure_compile_time_eval(), part.one_line():
        added = np.asarray(function(number, grid, width), np.float32)
    return np.asarray(_checked(kind, added, (len(number), *grid, width)))


def _checked(kind: str, added: Any, wanted: tuple[int, ...]) -> Any:
    if jnp.shape(added) != wanted:
        raise parse_own(_KEY, kind).error(
            f"it returned shape {list(jnp.shape(added))}: it must be [frame, row, column, width], "
            f"here {list(wanted)}"
        )
    return added


class OwnPositions(nn.Module):
    """Adds positions of the user's own to tokens.

    Attributes:
      kind: ``module:attribute``.
      dtype: of the sum.
    """

    kind: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, number: jax.Array | np.ndarray, added: jax.Array | np.ndarray
    ) -> jax.Array:
        """Maps ``[batch, time, row, column, width]`` to the same shape.

        Args:
          x: tokens.
          number: int32 ``[time]``, places of the frames.
          added: of `own_sums`.

        Raises:
          UserError: a module returns another shape, or does not take this grid.
        """
        if (module := own_module(self.kind)) is not None:
            own = module.clone(parent=self, name="own")
            with parse_own(_KEY, self.kind).one_line():
                found: Any = own(jnp.asarray(number), x.shape[2:4], x.shape[-1])
            added = _checked(self.kind, found, x.shape[1:])
        return x + jnp.asarray(added).astype(self.dtype)[None]
