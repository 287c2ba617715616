"""The state of a training run, and how it comes to lie sharded on the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bsq_jax.core.sharding import parameter_shardings, replicated


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, optimiser steps done.
      params: float32 parameters.
      ema: averaged parameters of the same structure; None when no average is kept.
      opt_state: optax state.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def abstract_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating anything.

    Args:
      init: returns the parameters, leaves in Linen's boxes with logical axis names.
      optimizer: the optimiser; each of its statistics is sharded like its parameter.
      mesh: the mesh.
      ema: whether averaged parameters are kept.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct` that carry shardings.
    """
    boxed = jax.eval_shape(init)
    shardings = parameter_shardings(boxed, mesh)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        shardings,
    )
    opt_state = jax.eval_shape(optimizer.init, params)

    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        place,
        opt_state,
        shardings,
        transform_non_params=lambda leaf: place(leaf, replicated(mesh)),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    shapes: Any = (step, params, params if ema else None, opt_state)
    return TrainState(*shapes)


def initial_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state at step 0, every array made where it belongs: no device ever holds it whole."""

    def make() -> TrainState:
        params = nn.meta.unbox(init())
        # A copy, because the step donates both and one buffer cannot be given twice.
        ema = jax.tree.map(jnp.copy, params) if abstract.ema is not None else None
        return TrainState(jnp.int32(0), params, ema, optimizer.init(params))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()
