"""Floating-point operations that a training step needs, as model FLOPs utilisation counts them.

What is computed a second time to save memory does not count, nor what attention computes and masks,
nor the products of an optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bsq_jax.losses.perceptual import Perceptual
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.masked_lm.model import MaskedLm
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training import flops
from bsq_jax.training.tasks.tokenizer import TokenizerTask

if TYPE_CHECKING:  # the benchmark of accelerators counts where it is not installed
    from ml_collections import ConfigDict


class PictureCost(NamedTuple):
    """What a tokenizer's network holds and computes.

    Attributes:
      parameters: how many.
      encode_flops: floating-point operations from the pixels of one frame to its tokens.
      decode_flops: from these tokens to pixels.
    """

    parameters: int
    encode_flops: float
    decode_flops: float


def picture_cost(config: ConfigDict) -> PictureCost:
    """The size of a tokenizer, and its operations for a picture of ``model.image_size``.

    Nothing is computed: the network is traced, see `bsq_jax.training.flops.count`.

    Args:
      config: a finalised config of a tokenizer.
    """
    model = _without_repetition(make_tokenizer(config))
    pixels = jax.ShapeDtypeStruct((1, 1, *config.model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)

    def encode(variables: Any, pixels: Any) -> Any:
        return model.apply(variables, pixels, method="encode").bits

    def decode(variables: Any, bits: Any) -> Any:
        return model.apply(variables, bits, method="decode")

    bits = jax.eval_shape(encode, variables, pixels)
    return PictureCost(
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        flops.count(encode, variables, pixels),
        flops.count(decode, variables, bits),
    )


def step_flops(task: Any, state: Any, batch: Mapping[str, Any], frozen: Any) -> float:
    """Of one step on the GLOBAL batch, in matrix products and convolutions.

    LPIPS and a discriminator that start later are counted as after their start, and the R1
    penalty, which is not due at every step, with its share.

    Args:
      task: of any kind.
      state: as ``task.train_step`` takes it; arrays or shapes.
      batch: likewise.
      frozen: likewise.
    """
    state, batch, frozen = jax.tree.map(_shape, (state, batch, frozen))
    # Products of the optimizer (Muon's) train nothing faster: they are no useful work either.
    model, optimizer = _without_repetition(task.model), optax.identity()
    task = dataclasses.replace(task, model=model, optimizer=optimizer)
    if isinstance(task, TokenizerTask):
        losses = (
            dataclasses.replace(loss, start=0) if isinstance(loss, Perceptual) else loss
            for loss in task.losses
        )
        task = dataclasses.replace(task, losses=tuple(losses))
    if not isinstance(task, TokenizerTask) or task.adversarial is None:
        return flops.count(task.train_step, state, batch, frozen)

    rules = dataclasses.replace(task.adversarial, start=0)  # R1 then is the only choice in it
    step = dataclasses.replace(task, adversarial=rules).train_step
    without, due = flops.count_range(step, state, batch, frozen)
    return without + (due - without) / rules.r1_every


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _without_repetition(model: Any) -> Any:
    """The same network, without what is computed again and what is computed in vain."""
    if isinstance(model, TokenizerModel):
        return model.clone(remat="none", attention="blocked", blocking=Blocking.FOR_COUNTING)
    if isinstance(model, MaskedLm):
        compute = dataclasses.replace(
            model.compute, remat="none", attention="blocked", blocking=Blocking.FOR_COUNTING
        )
        return model.clone(compute=compute)
    return model
