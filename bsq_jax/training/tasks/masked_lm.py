"""The task of training a masked language model on the tokens of a frozen tokenizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bsq_jax.core.rng import stream_key
from bsq_jax.models.factory import make_masked_lm
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.mask_schedule import masked_share
from bsq_jax.models.masked_lm.model import MaskedLm, MaskedLmShape
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.state import TrainableNetwork, TrainState
from bsq_jax.training.tasks.base import Batch, Metrics, shared_settings
from bsq_jax.training.tasks.on_tokens import TokensTask


class MaskedBatch(NamedTuple):
    """A batch of which some words are masked: what the model is given and what it is to predict.

    Attributes:
      words: int32 ``[batch, time, token, group]``: whole in the frames before `frame`, some masked
        in it, all masked after it.
      labels: int32 ``[batch]``, classes; -1 for none.
      frame: int32 ``[batch]``, the frame whose masked words are to be predicted.
      targets: int32 ``[batch, token, group]``, the words of that frame.
      masked: booleans ``[batch, token, group]``, which of them are masked.
    """

    words: jax.Array
    labels: jax.Array
    frame: jax.Array
    targets: jax.Array
    masked: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLmTask(TokensTask):
    """``(state, batch, frozen) -> (state, metrics)`` for a masked language model.

    A batch is one of `FrozenTokenizer.tokens`. There may be ``frames`` int32 ``[batch]``, the
    number of real frames of each clip, and ``label`` int32 ``[batch]``, its class or -1.

    Attributes:
      model: the network.
      mask_schedule: of the share that is masked, see `bsq_jax.models.masked_lm.mask_schedule`.
      mask_unit: what is masked as a whole: a ``token``, or each ``group`` of bits by itself.
      label_dropout: share of the examples whose class is withheld.
      label_smoothing: share of the target that goes to all words alike.
    """

    model: MaskedLm
    mask_schedule: str
    mask_unit: str
    label_dropout: float
    label_smoothing: float

    # --- state ---

    @property
    def _network(self) -> TrainableNetwork:
        shape = self.model.shape

        def init() -> Any:
            words = jnp.zeros((1, 1, shape.tokens, shape.groups), jnp.int32)
            labels = jnp.zeros(1, jnp.int32)
            return self.model.init(stream_key(self.seed, "init"), words, labels)["params"]

        return TrainableNetwork(init, self.optimizer)

    # --- masking ---

    def mask(self, batch: Batch, frozen: Mapping[str, Any], keys: jax.Array) -> MaskedBatch:
        """Masks a frame of each example, by a key ``[batch]`` for each."""
        shape = self.model.shape
        words = shape.vocabulary.read(self.tokenizer.tokens(batch, frozen))
        count, time = words.shape[:2]
        frames = batch.get("frames", jnp.full(count, time, jnp.int32))
        labels = batch.get("label", jnp.full(count, -1, jnp.int32))
        units = (shape.tokens, 1 if self.mask_unit == "token" else shape.groups)

        def draw(key: jax.Array, frames: jax.Array) -> tuple[jax.Array, ...]:
            for_share, for_order, for_frame, for_label = jax.random.split(key, 4)
            share = masked_share(self.mask_schedule, jax.random.uniform(for_share))
            total = math.prod(units)
            wanted = jnp.clip(jnp.ceil(total * share), 1, total).astype(jnp.int32)
            order = jnp.argsort(jnp.argsort(jax.random.uniform(for_order, (total,))))
            masked = jnp.broadcast_to((order < wanted).reshape(units), targets.shape[1:])
            frame = jax.random.randint(for_frame, (), 0, jnp.maximum(frames, 1))
            return masked, frame, jax.random.uniform(for_label) < self.label_dropout

        targets = words[:, 0]  # for its shape
        masked, frame, dropped = jax.vmap(draw)(keys, frames)
        ahead = jnp.arange(time, dtype=jnp.int32)[None] - frame[:, None]
        ahead = ahead[:, :, None, None]
        hidden = (ahead > 0) | ((ahead == 0) & masked[:, None])
        masks = jnp.asarray(shape.masks).reshape(1, 1, 1, -1)
        return MaskedBatch(
            words=jnp.where(hidden, masks, words),
            labels=jnp.where(dropped, -1, labels),
            frame=frame,
            targets=jnp.take_along_axis(words, frame[:, None, None, None], axis=1)[:, 0],
            masked=masked,
        )

    def _sums(self, params: Any, batch: MaskedBatch) -> Metrics:
        """The model's `sums_over_masked` for a batch."""
        logits: Any = self.model.apply({"params": params}, batch.words, batch.labels, batch.frame)[
            0
        ]
        return sums_over_masked(
            self.model.shape, logits, batch.targets, batch.masked, self.label_smoothing
        )

    # --- training ---

    def train_step(
        self, state: TrainState, batch: Batch, frozen: Mapping[str, Any]
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step on one global batch."""
        masked = self.mask(batch, frozen, self._keys(batch, "masks", state.step))

        def gradients_of(part: MaskedBatch, _: jax.Array | None) -> tuple[Any, Any]:
            def loss(params: Any) -> tuple[jax.Array, Metrics]:
                sums = {k: jnp.sum(v) for k, v in self._sums(params, part).items()}
                count = sums.pop("masked")
                means = {name: value / count for name, value in sums.items()}
                return means["loss"], means

            gradients, means = jax.grad(loss, has_aux=True)(state.params)
            return gradients, means

        counts = jnp.sum(masked.masked, axis=(1, 2)).astype(jnp.float32)
        gradients, means = over_micro_batches(gradients_of, masked, counts, self.accumulate)
        watched = {
            "loss": means["loss"],
            "cross_entropy": self._bits(means["cross_entropy"]),
            "accuracy": means["right"],
            "masked": jnp.mean(masked.masked.astype(jnp.float32)),
        }
        after, of_optimizer = self._optimizer_step(state, gradients)
        return after, watched | of_optimizer

    def _keys(self, batch: Batch, stream: str, step: jax.Array | int) -> jax.Array:
        rows = len(next(iter(batch.values())))
        key = stream_key(self.seed, stream, step)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def _bits(self, nats: Any) -> Any:
        """Nats a group as bits for each bit: 0 is certainty, 1 a guess among all patterns."""
        shape = self.model.shape
        return nats * shape.groups / (shape.bits * math.log(2))

    # --- evaluation ---

    def evaluate_step(
        self, params: Any, batch: Batch, frozen: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Sums over the masked groups of each example, as in training but for label dropout.

        The masks are drawn by ``index`` int ``[batch]``, the number of each example, so that they
        are the same at any step, in any batch.

        Returns:
          float32 ``[batch]`` each: ``loss``, ``cross_entropy`` in bits for each masked bit times
          ``masked``, ``right`` and ``masked``.
        """
        key = stream_key(self.seed, "validation masks")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        with_labels = dataclasses.replace(self, label_dropout=0.0)
        sums = self._sums(params, with_labels.mask(batch, frozen, keys))
        return {**sums, "cross_entropy": self._bits(sums["cross_entropy"])}


def sums_over_masked(
    shape: MaskedLmShape,
    logits: jax.Array,
    targets: jax.Array,
    masked: jax.Array,
    smoothing: float = 0.0,
) -> dict[str, jax.Array]:
    """Sums over the masked groups of each example.

    Args:
      shape: of the model.
      logits: ``[batch, token, sum of words]``.
      targets: int32 ``[batch, token, group]``.
      masked: booleans ``[batch, token, group]``.
      smoothing: share of the target that goes to all words alike.

    Returns:
      float32 ``[batch]`` each: ``loss`` with smoothed targets and ``cross_entropy``, both in nats;
      ``right``, the number of groups whose likeliest word is the target; ``masked``, the number of
      masked groups.
    """
    totals = {name: jnp.zeros(len(logits)) for name in ("loss", "cross_entropy", "right")}
    for group, of_group in enumerate(shape.split(logits)):
        weights = masked[..., group].astype(jnp.float32)
        target = targets[..., group]
        logs = jax.nn.log_softmax(of_group)
        entropy = -jnp.take_along_axis(logs, target[..., None], axis=-1)[..., 0]
        spread = -jnp.mean(logs, axis=-1)
        found = {
            "loss": (1 - smoothing) * entropy + smoothing * spread,
            "cross_entropy": entropy,
            "right": (jnp.argmax(of_group, axis=-1) == target).astype(jnp.float32),
        }
        for name, values in found.items():
            totals[name] += jnp.sum(values * weights, axis=-1)
    return {**totals, "masked": jnp.sum(masked, axis=(1, 2)).astype(jnp.float32)}


def make_masked_lm_task(config: ConfigDict, tokenizer: FrozenTokenizer) -> MaskedLmTask:
    """The task that a finalised config describes, on the tokens of a tokenizer."""
    masked = config.masked_lm
    return MaskedLmTask(
        model=make_masked_lm(config),
        tokenizer=tokenizer,
        mask_schedule=masked.schedule,
        mask_unit=masked.mask_unit,
        label_dropout=masked.label_dropout,
        label_smoothing=masked.label_smoothing,
        **shared_settings(config),
    )
