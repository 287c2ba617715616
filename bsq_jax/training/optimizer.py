"""The optimizers: AdamW or Muon, schedules, clipping and averaged parameters, from optax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from bsq_jax.core.own_parts import parse_own
from bsq_jax.models.transformer import STACK

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# By the last name of a parameter, because shapes do not decide it: a table of positions has two
# axes like a matrix, and so have the biases of scanned layers. Every parameter of every model is in
# one of the two sets, see `decays`, but for those of the user's own quantizers and positions.
_MATRICES = frozenset(
    {"kernel"}  # linear layers and convolutions
    | {"qkv", "out", "up", "down", "embed", "before", "context", "earlier", "later"}  # of the prior
)
_OTHERS = frozenset(
    {"bias", "scale"}  # of layers and norms
    | {"spatial", "temporal"}  # positions
    | {"embedding"}  # words and classes of the masked language model
    | {"codebook"}  # of a quantizer: points among the latents, which decay would pull to the origin
    # Of the prior: biases, positions, and the learned token and key of what has none.
    | {"up_bias", "context_bias", "logit_bias", "near", "place", "unknown", "null"}
)

_OWN = frozenset({"quantizer", "own"})  # modules whose other parameters do not decay


def _is_stacked(path: tuple[Any, ...]) -> bool:
    return any(getattr(entry, "key", None) == STACK for entry in path)


def square_norms(gradients: Any) -> Any:
    """Sum of squares of each parameter's gradient, in float32.

    Layers that a scan stacks on a leading axis count as one parameter each, as they do in the
    published code, which has no scan.

    Args:
      gradients: a tree of gradients.

    Returns:
      The same tree; of a stack of layers ``[layer, 1, ...]``, of any other parameter ``[1, ...]``.
    """

    def one(path: tuple[Any, ...], gradient: jax.Array) -> jax.Array:
        axes = tuple(range(1 if _is_stacked(path) else 0, gradient.ndim))
        return jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=axes, keepdims=True)

    return jax.tree_util.tree_map_with_path(one, gradients)


def norm(gradients: Any) -> jax.Array:
    """Euclidean norm of all gradients together, a float32 scalar.

    As `optax.tree.norm`, from the sums that `clip_each_parameter` needs too: for two different
    sums XLA for CPUs would write the squares to memory. The barrier keeps it from making two.
    """
    squares = jax.lax.optimization_barrier(jax.tree.leaves(square_norms(gradients)))
    return jnp.sqrt(sum(map(jnp.sum, squares), jnp.float32(0)))


def clip_each_parameter(max_norm: float) -> optax.GradientTransformation:
    """Scales each parameter's gradient down to a norm of at most `max_norm`.

    It is not one of optax's transformations: those clip the norm of the whole tree, or the root
    mean square of a leaf, all stacked layers together. See `square_norms`.

    Args:
      max_norm: the largest Euclidean norm, positive.
    """

    def clip(gradient: jax.Array, square: jax.Array) -> jax.Array:
        factor = max_norm / jnp.maximum(jnp.sqrt(square), max_norm)
        return (gradient * factor).astype(gradient.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(clip, updates, square_norms(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _all(params: Any) -> Any:
    """That all parameters decay: a mask like `decays`, so that the state has one structure."""
    return jax.tree.map(lambda _: True, params)


def decays(params: Any) -> Any:
    """Which parameters decay: matrices do; norms, biases, positions and embeddings do not.

    Args:
      params: a tree of parameters, or of their shapes.

    Returns:
      The same tree of booleans.

    Raises:
      ValueError: a parameter has a name that is not declared in this module.
    """

    def one(path: tuple[Any, ...], _: Any) -> bool:
        name = getattr(path[-1], "key", None)
        if name in _MATRICES | _OTHERS:
            return name in _MATRICES
        if any(getattr(entry, "key", None) in _OWN for entry in path[:-1]):
            return False
        raise ValueError(
            f"weight decay of the parameter {jax.tree_util.keystr(path)} is not declared: add "
            "its name to the matrices or the others in bsq_jax/training/optimizer.py"
        )

    return jax.tree_util.tree_map_with_path(one, params)


def make_schedule(
    config: ConfigDict, learning_rate: float | None = None, steps: int | None = None
) -> optax.Schedule:
    """The learning rate by step that ``config.optimizer`` describes (paper, training details).

    It rises linearly from ``warmup_start`` times the peak to the peak within ``warmup_steps``, then
    falls along a cosine to ``final`` times the peak at the last step, and stays there. Where the
    warm-up takes all steps, the step after it is the first at ``final``.

    Args:
      config: a finalised config.
      learning_rate: the peak, if it is not that of ``config.optimizer``.
      steps: how many steps it is laid out over, if not ``config.train.steps``.
    """
    optimizer = config.optimizer
    peak = optimizer.learning_rate if learning_rate is None else learning_rate
    steps = config.train.steps if steps is None else steps
    return optax.warmup_cosine_decay_schedule(
        init_value=peak * optimizer.warmup_start,
        peak_value=peak,
        warmup_steps=optimizer.warmup_steps,
        decay_steps=max(steps, optimizer.warmup_steps + 1),
        end_value=peak * optimizer.final,
    )


def block_matrices(params: Any) -> Any:
    """The matrices of the transformer blocks, which Muon trains, and which axes they map.

    Args:
      params: a tree of parameters, or of their shapes.

    Returns:
      The same tree of `optax.contrib.MuonDimensionNumbers`, or None for what is no such matrix. The
      axis of stacked layers is in neither set: each layer's matrix is one of its own. Queries, keys
      and values are one matrix.
    """
    dimensions = optax.contrib.MuonDimensionNumbers

    def one(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = [getattr(entry, "key", "") for entry in path]
        if _is_stacked(path) and names[-1] == "kernel":
            inputs = 2 if names[-2] == "out" else 1  # attention's last takes heads and channels
            axes = tuple(range(1, leaf.ndim))
            return dimensions(axes[:inputs], axes[inputs:])
        # The blocks of the prior are not stacked.
        in_block = any(name.startswith("block_") for name in names)
        return dimensions(0, 1) if in_block and names[-1] in _MATRICES else None

    return jax.tree_util.tree_map_with_path(one, params)


def _is_block_matrix(params: Any) -> Any:
    """Whether Muon or AdamW trains a parameter: a tree of the names of the two."""
    return jax.tree.map(
        lambda found: "adamw" if found is None else "muon",
        block_matrices(params),
        is_leaf=lambda leaf: leaf is None or isinstance(leaf, optax.contrib.MuonDimensionNumbers),
    )


def make_optimizer(
    config: ConfigDict,
    learning_rate: float | None = None,
    clip: str | None = None,
    steps: int | None = None,
    name: str | None = None,
) -> optax.GradientTransformation:
    """The chain that ``config.optimizer`` describes: clipping, then AdamW or Muon.

    Muon (Jordan et al. 2024, as `optax.contrib.muon`) trains the matrices of the blocks, AdamW
    everything else; both follow the schedule, each from its own peak.

    Args:
      config: a finalised config.
      learning_rate: the peak, if it is not that of ``config.optimizer``.
      clip: the kind of clipping, if it is not that of ``config.optimizer``.
      steps: how many steps the schedule is laid out over, if not ``config.train.steps``.
      name: of the optimizer, if it is not that of ``config.optimizer``.

    Raises:
      UserError: an optimizer of the user's own cannot be made.
    """
    optimizer = config.optimizer
    name = name or optimizer.name
    clipping = {
        "none": optax.identity,
        "global": lambda: optax.clip_by_global_norm(optimizer.clip_norm),
        "parameter": lambda: clip_each_parameter(optimizer.clip_norm),
    }[optimizer.clip if clip is None else clip]()
    trained = optax.adamw(
        make_schedule(config, learning_rate, steps),
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        mask=_all if optimizer.decay_all else decays,
    )
    if ":" in name:
        trained = _own(name, make_schedule(config, learning_rate, steps))
    if name == "muon":
        muon = optax.contrib.muon(
            make_schedule(config, optimizer.muon_learning_rate, steps),
            beta=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            muon_weight_dimension_numbers=block_matrices,
        )
        trained = optax.partition({"muon": muon, "adamw": trained}, _is_block_matrix)
    return optax.chain(clipping, trained)


def _own(name: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """An optimizer of the user's own, see docs/extending/optimizer.md."""
    part = parse_own("optimizer.name", name)
    made = part.make(schedule)
    if not isinstance(made, optax.GradientTransformation):
        raise part.error(
            f"it returned {type(made).__name__}: it must be an optax.GradientTransformation, such "
            "as optax.lion(schedule)"
        )
    return made


def make_discriminator_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The discriminator's: AdamW as the generator's, with ``config.discriminator``'s rate and clip.

    It counts its own steps, from ``config.loss.adversarial_start`` on, so its schedule is laid out
    over these: warm-up from its first step on, ``config.optimizer.final`` at the end of the run.
    """
    return make_optimizer(
        config,
        config.discriminator.learning_rate,
        name="adamw",
        clip=config.discriminator.clip,
        steps=max(config.train.steps - config.loss.adversarial_start, 1),
    )


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float, *, warmup: bool) -> Any:
    """Moves averaged parameters towards the current ones.

    Args:
      ema: averaged parameters.
      params: the current ones, of the same structure.
      step: steps done before this one.
      decay: share of the average that a step keeps.
      warmup: start with a small decay, ``min(decay, (1 + step) / (10 + step))``, so that the
        random start is forgotten within the first steps and short runs have a useful average too.
    """
    rate = 1.0 - (jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else decay)
    return optax.incremental_update(params, ema, rate)
