"""The state of a training run, and how it comes to lie sharded on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bsq_jax.core.sharding import batch_sharding, jit_on, parameter_shardings, replicated
from bsq_jax.training.optimizer import update_ema


@flax.struct.dataclass
class DiscriminatorState:
    """The discriminator's part of the state.

    Attributes:
      params: its float32 parameters; no average is kept of them.
      opt_state: state of its own optimizer.
      anchors: float32 ``[2]``: averaged logits of real pictures and of reconstructions, for LeCAM.
      r1: float32 scalar: the R1 penalty when it was last taken, for the log.
    """

    params: Any
    opt_state: Any
    anchors: jax.Array
    r1: jax.Array


@flax.struct.dataclass
class CodebookState:
    """The moving averages of a learned codebook, which is itself among the parameters.

    Attributes:
      usage: float32 ``[code]``, moving mean of the share of the tokens that a code has.
      sums: float32 ``[code, channel]``, moving mean of the sum of the points of these tokens, over
        the number of all tokens; None where the codebook learns from gradients.
    """

    usage: jax.Array
    sums: jax.Array | None


@flax.struct.dataclass
class RateState:
    """The prior that measures the rate in the loss of a tokenizer.

    Attributes:
      params: its float32 parameters.
      opt_state: state of its own optimizer.
    """

    params: Any
    opt_state: Any


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: float32 parameters.
      ema: averaged parameters of the same structure; None when no average is kept.
      opt_state: optax state.
      adversary: the discriminator, under the name that checkpoints have for it; None where there
        is none.
      codebooks: of each learned codebook of the quantizer; None where there is none.
      rate: the prior of the rate in the loss; None where there is none.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    adversary: DiscriminatorState | None = None
    codebooks: tuple[CodebookState, ...] | None = None
    rate: RateState | None = None


class TrainableNetwork(NamedTuple):
    """A network and its optimizer.

    Attributes:
      init: makes its random parameters, in Linen's boxes with logical axis names.
      optimizer: optax transformation of its gradients.
    """

    init: Callable[[], Any]
    optimizer: optax.GradientTransformation


class Codebooks(Protocol):
    """Makes the state of codebooks from the parameters that they are among."""

    def init(self, params: Any, *, trained: bool = False) -> tuple[CodebookState, ...]:
        """The state at step 0; `trained`: the parameters are not random ones."""

    def abstract(self, params: Any) -> tuple[CodebookState, ...]:
        """Its shapes and shardings, of those of the parameters."""


def abstract_state(
    network: TrainableNetwork,
    mesh: Mesh,
    *,
    ema: bool,
    discriminator: TrainableNetwork | None = None,
    codebooks: Codebooks | None = None,
    rate: TrainableNetwork | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating anything.

    Args:
      network: the one that is trained; each of the optimizer's statistics is sharded like its
        parameter.
      mesh: the mesh.
      ema: whether averaged parameters are kept.
      discriminator: the network that is trained against it, if there is one.
      codebooks: those of the network that are learned, if there are any.
      rate: the prior of the rate in its loss, if there is one.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct` that carry shardings.
    """

    def place(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def scalar(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def params_and_statistics(network: TrainableNetwork) -> Any:
        boxed = jax.eval_shape(network.init)
        shardings = parameter_shardings(boxed, mesh)
        params = jax.tree.map(place, nn.meta.unbox(boxed), shardings)
        opt_state = jax.eval_shape(network.optimizer.init, params)
        return params, jax.tree.map(place, opt_state, _like_parameters(opt_state, params, mesh))

    params, opt_state = params_and_statistics(network)
    second: Any = None
    if discriminator is not None:
        numbers: Any = (scalar((2,), jnp.float32), scalar((), jnp.float32))
        second = DiscriminatorState(*params_and_statistics(discriminator), *numbers)
    third = None if codebooks is None else codebooks.abstract(params)
    fourth = None if rate is None else RateState(*params_and_statistics(rate))
    average = params if ema else None
    fields: Any = (scalar((), jnp.int32), params, average, opt_state, second, third, fourth)
    return TrainState(*fields)


def _like_parameters(opt_state: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer's state: a statistic of a parameter's shape lies as that does.

    It is known by its path, which ends with the parameter's. `optax.tree.map_params` would not do:
    it takes each tree of statistics for one of all parameters, and those of an optimizer that has
    only some of them (`optax.partition`) are not.
    """
    owners = dict(jax.tree_util.tree_flatten_with_path(params)[0])

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        for start in range(len(path)):
            owner = owners.get(path[start:])
            if owner is not None and owner.shape == leaf.shape:
                return owner.sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, opt_state)


def initial_state(
    network: TrainableNetwork,
    abstract: TrainState,
    *,
    discriminator: TrainableNetwork | None = None,
    codebooks: Codebooks | None = None,
    rate: TrainableNetwork | None = None,
) -> TrainState:
    """The state at step 0, every array made where it belongs: no device ever holds it whole.

    Args:
      network: as given to `abstract_state`.
      abstract: what that returned.
      discriminator: as given to `abstract_state`.
      codebooks: likewise.
      rate: likewise.
    """

    def make() -> TrainState:
        params = nn.meta.unbox(network.init())
        # A copy, because the step donates both and one buffer cannot be given twice.
        ema = jax.tree.map(jnp.copy, params) if abstract.ema is not None else None
        second = None
        if discriminator is not None:
            weights = nn.meta.unbox(discriminator.init())
            second = DiscriminatorState(
                weights, discriminator.optimizer.init(weights), jnp.zeros(2), jnp.float32(0)
            )
        third = None if codebooks is None else codebooks.init(params)
        fourth = None
        if rate is not None:
            weights = nn.meta.unbox(rate.init())
            fourth = RateState(weights, rate.optimizer.init(weights))
        opt_state = network.optimizer.init(params)
        fields: Any = (jnp.int32(0), params, ema, opt_state, second, third, fourth)
        return TrainState(*fields)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jit_on(jax.tree.leaves(shardings)[0].mesh, make, out_shardings=shardings)()


def optimizer_step(
    params: Any, gradients: Any, optimizer: optax.GradientTransformation, opt_state: Any
) -> tuple[Any, Any]:
    """Parameters and the optimizer's state after one of its steps."""
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def next_state(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    *,
    ema_warmup: bool,
    amend: Callable[[Any], Any] | None = None,
) -> TrainState:
    """The state after one optimizer step of the network; all that is not its is left as it is.

    Args:
      state: the state before.
      gradients: of the network's parameters.
      optimizer: the network's.
      ema_decay: of the averaged parameters, see `update_ema`.
      ema_warmup: likewise.
      amend: what else happens to the parameters, after the optimizer's step and before the average
        follows them; None: nothing.
    """
    params, opt_state = optimizer_step(state.params, gradients, optimizer, state.opt_state)
    if amend is not None:
        params = amend(params)
    ema = state.ema
    if ema is not None:
        ema = update_ema(ema, params, state.step, ema_decay, warmup=ema_warmup)
    return dataclasses.replace(
        state, step=state.step + 1, params=params, ema=ema, opt_state=opt_state
    )


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
