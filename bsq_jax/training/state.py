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

from bsq_jax.core.sharding import batch_sharding, jit_on, parameter_shardings, replicated
from bsq_jax.training.optimizer import update_ema


@flax.struct.dataclass
class Adversary:
    """The second player's part of the state.

    Attributes:
      params: float32 parameters of the discriminator; no average is kept of them.
      opt_state: state of its own optimiser.
      anchors: float32 ``[2]``: averaged logits of real pictures and of reconstructions, for LeCAM.
      r1: float32 scalar: the R1 penalty when it was last taken, for the log.
    """

    params: Any
    opt_state: Any
    anchors: jax.Array
    r1: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, optimiser steps done.
      params: float32 parameters.
      ema: averaged parameters of the same structure; None when no average is kept.
      opt_state: optax state.
      adversary: the second player; None where there is none.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    adversary: Adversary | None = None


# A player: what makes its parameters (in Linen's boxes with logical axis names), its optimiser.
Player = tuple[Callable[[], Any], optax.GradientTransformation]


def abstract_state(
    player: Player, mesh: Mesh, *, ema: bool, adversary: Player | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating anything.

    Args:
      player: ``(init, optimizer)`` of the generator; each of the optimiser's statistics is sharded
        like its parameter.
      mesh: the mesh.
      ema: whether averaged parameters are kept.
      adversary: ``(init, optimizer)`` of the discriminator, if there is one.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct` that carry shardings.
    """

    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def scalar(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def abstract_player(init: Callable[[], Any], optimizer: optax.GradientTransformation) -> Any:
        boxed = jax.eval_shape(init)
        shardings = parameter_shardings(boxed, mesh)
        params = jax.tree.map(place, nn.meta.unbox(boxed), shardings)
        opt_state = optax.tree.map_params(
            optimizer,
            place,
            jax.eval_shape(optimizer.init, params),
            shardings,
            transform_non_params=lambda leaf: place(leaf, replicated(mesh)),
        )
        return params, opt_state

    params, opt_state = abstract_player(*player)
    second: Any = None
    if adversary is not None:
        numbers: Any = (scalar((2,), jnp.float32), scalar((), jnp.float32))
        second = Adversary(*abstract_player(*adversary), *numbers)
    fields: Any = (scalar((), jnp.int32), params, params if ema else None, opt_state, second)
    return TrainState(*fields)


def initial_state(
    player: Player, abstract: TrainState, *, adversary: Player | None = None
) -> TrainState:
    """The state at step 0, every array made where it belongs: no device ever holds it whole.

    Args:
      player: as given to `abstract_state`.
      abstract: what that returned.
      adversary: as given to `abstract_state`.
    """

    def make() -> TrainState:
        init, optimizer = player
        params = nn.meta.unbox(init())
        # A copy, because the step donates both and one buffer cannot be given twice.
        ema = jax.tree.map(jnp.copy, params) if abstract.ema is not None else None
        second = None
        if adversary is not None:
            init_second, optimizer_second = adversary
            weights = nn.meta.unbox(init_second())
            second = Adversary(
                weights, optimizer_second.init(weights), jnp.zeros(2), jnp.float32(0)
            )
        fields: Any = (jnp.int32(0), params, ema, optimizer.init(params), second)
        return TrainState(*fields)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jit_on(jax.tree.leaves(shardings)[0].mesh, make, out_shardings=shardings)()


def next_state(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    *,
    ema_warmup: bool = True,
) -> TrainState:
    """The state after one step of the only player's optimiser; see `update_ema` for the average."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = update_ema(ema, params, state.step, ema_decay, warmup=ema_warmup)
    return TrainState(state.step + 1, params, ema, opt_state)


def jit_step(task: Any, mesh: jax.sharding.Mesh, shardings: Any) -> Any:
    """The jitted ``(state, batch, frozen) -> (state, metrics)`` of a task; the state is donated.

    Args:
      task: has ``train_step(state, batch, frozen) -> (state, metrics)``.
      mesh: the run's mesh.
      shardings: of the state, a tree like it.
    """
    return jit_on(
        mesh,
        task.train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
