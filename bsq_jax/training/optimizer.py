"""AdamW with the published schedule, clipping and averaging, built from optax parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from bsq_jax.models.transformer import STACK

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def schedule(
    learning_rate: float, *, warmup_steps: int, warmup_start: float, steps: int, final: float
) -> optax.Schedule:
    """Linear warm-up, then a cosine (paper, training details).

    Args:
      learning_rate: the peak.
      warmup_steps: steps from ``warmup_start * learning_rate`` up to the peak.
      warmup_start: share of the peak at step 0.
      steps: last step of the cosine.
      final: share of the peak at `steps` and after.
    """

    def rate(count: jax.Array) -> jax.Array:
        warm = warmup_start + (1 - warmup_start) * jnp.minimum(count / max(warmup_steps, 1), 1.0)
        progress = jnp.clip((count - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        cosine = final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * progress))
        return learning_rate * jnp.where(count < warmup_steps, warm, cosine)

    return rate


# By the last name of a parameter, because shapes do not tell: a table of positions has two axes as
# a matrix has, and the biases of scanned layers too. Every parameter of every model stands in one
# of the two, see `decays`.
_MATRICES = frozenset(
    {"kernel"}  # linear layers and convolutions
    | {"qkv", "out", "up", "down", "embed", "before", "context", "earlier", "later"}  # of the prior
)
_OTHERS = frozenset(
    {"bias", "scale"}  # of layers and norms
    | {"spatial", "temporal"}  # positions
    | {"embedding"}  # words and classes of the masked language model
    # Of the prior: biases, positions, and the learned token and key that stand for no other.
    | {"up_bias", "context_bias", "logit_bias", "near", "place", "unknown", "null"}
)


def _is_stacked(path: tuple[Any, ...]) -> bool:
    return any(getattr(entry, "key", None) == STACK for entry in path)


def clip_each_parameter(max_norm: float) -> optax.GradientTransformation:
    """Scales each parameter's gradient down to a norm of at most `max_norm`.

    Layers that a scan stacks on a leading axis count as one parameter each.
    """

    def clip(path: tuple[Any, ...], gradient: jax.Array) -> jax.Array:
        axes = tuple(range(1 if _is_stacked(path) else 0, gradient.ndim))
        square = jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=axes, keepdims=True)
        factor = max_norm / jnp.maximum(jnp.sqrt(square), max_norm)
        return (gradient * factor).astype(gradient.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree_util.tree_map_with_path(clip, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Both ways are masks, so that the optimizer's state has one structure.
def _all(params: Any) -> Any:
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
        if name not in _MATRICES | _OTHERS:
            raise ValueError(
                f"weight decay of the parameter {jax.tree_util.keystr(path)} is not declared: add "
                "its name to the matrices or the others in bsq_jax/training/optimizer.py"
            )
        return name in _MATRICES

    return jax.tree_util.tree_map_with_path(one, params)


def make_schedule(
    config: ConfigDict, learning_rate: float | None = None, steps: int | None = None
) -> optax.Schedule:
    """The schedule of ``config.optimizer`` over ``config.train.steps``.

    Args:
      config: a finalised config.
      learning_rate: the peak, if it is not that of ``config.optimizer``.
      steps: how many steps it is laid out over, if not ``config.train.steps``.
    """
    optimizer = config.optimizer
    return schedule(
        optimizer.learning_rate if learning_rate is None else learning_rate,
        warmup_steps=optimizer.warmup_steps,
        warmup_start=optimizer.warmup_start,
        steps=config.train.steps if steps is None else steps,
        final=optimizer.final,
    )


def make_optimizer(
    config: ConfigDict,
    learning_rate: float | None = None,
    clip: str | None = None,
    steps: int | None = None,
) -> optax.GradientTransformation:
    """The chain that ``config.optimizer`` describes: clipping, then AdamW.

    Args:
      config: a finalised config.
      learning_rate: the peak, if it is not that of ``config.optimizer``.
      clip: the kind of clipping, if it is not that of ``config.optimizer``.
      steps: how many steps the schedule is laid out over, if not ``config.train.steps``.
    """
    optimizer = config.optimizer
    clipping = {
        "none": optax.identity,
        "global": lambda: optax.clip_by_global_norm(optimizer.clip_norm),
        "parameter": lambda: clip_each_parameter(optimizer.clip_norm),
    }[optimizer.clip if clip is None else clip]()
    return optax.chain(
        clipping,
        optax.adamw(
            make_schedule(config, learning_rate, steps),
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=_all if optimizer.decay_all else decays,
        ),
    )


def make_discriminator_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The discriminator's: as the generator's, but for ``config.discriminator``'s rate and clip.

    It counts its own steps, from ``config.loss.adversarial_start`` on, so its schedule is laid out
    over these: warm-up when it starts to play, ``config.optimizer.final`` at the end of the run.
    """
    return make_optimizer(
        config,
        config.discriminator.learning_rate,
        clip=config.discriminator.clip,
        steps=max(config.train.steps - config.loss.adversarial_start, 1),
    )


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float, *, warmup: bool = True) -> Any:
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
    return jax.tree.map(lambda average, p: average + rate * (p - average), ema, params)
