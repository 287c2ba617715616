"""What is measured of a masked language model: its guesses of masked tokens, and its samples."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.errors import UserError
from bsq_jax.core.progress import progress
from bsq_jax.core.sharding import batch_sharding, batch_shards, jit_on, replicated
from bsq_jax.data.tokens import measured_words
from bsq_jax.evaluation.catalog import FEATURE_METRICS
from bsq_jax.evaluation.feature_metrics import FeatureMetrics
from bsq_jax.evaluation.loop import Accumulator, EvaluationLoop, HostBatch, Validation
from bsq_jax.evaluation.metric import NetworkSettings, Note, Row
from bsq_jax.evaluation.metrics import FeatureStatistics
from bsq_jax.evaluation.report import Drawing, Wanted
from bsq_jax.evaluation.tables import unreadable_lines, value_lines
from bsq_jax.media import pictures, videos
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.sampler import Sampler

# What samples are compared with: the pictures, or what the tokenizer makes of them where the data
# are its tokens and there are no pictures.
ORIGINALS, RECONSTRUCTIONS = "originals", "reconstructions"

_ROWS = (
    Row("cross_entropy", "cross entropy (bits per masked bit)", "{:.4f}"),
    Row("accuracy", "accuracy of masked groups", "{:.1%}"),
    *(row for metric in FEATURE_METRICS for row in metric.rows),
)
_SUMS = ("cross_entropy", "right", "masked")


class MaskedLmTask(Protocol):
    """What is evaluated."""

    @property
    def tokenizer(self) -> FrozenTokenizer:
        """Makes pixels of tokens."""
        ...

    @property
    def seed(self) -> int:
        """Of the samples."""
        ...

    def load_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """Parameters that stay as they are, on every device."""
        ...

    def evaluate_step(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Sums over the masked groups of each example, float32 ``[batch]``.

        ``cross_entropy`` in bits for each masked bit times ``masked``, ``right`` and ``masked``.
        """
        ...


class Samples(NamedTuple):
    """How samples are drawn.

    Attributes:
      sampler: draws them.
      number: how many are compared with the split; 0 for none.
      classes: names of the classes, which samples take turns at; empty where there are none.
      settings: of the sampler, for the report.
    """

    sampler: Sampler
    number: int
    classes: Sequence[str]
    settings: Mapping[str, Any]


class MaskedLmEvaluator:
    """Measures parameters of a masked language model, see `Evaluator`.

    Args:
      task: gives the evaluation step.
      samples: how samples are drawn.
      validation: the examples.
      mesh: the run's mesh.
      batch_size: global; rounded up to a multiple of the number of shards.
      size: height and width of a frame in pixels.
      networks: which metrics of features compare samples with the split.
      measured: on what, for the report, see `bsq_jax.data.tokens.measured`.

    Raises:
      UserError: the weights of a network are missing or damaged.
    """

    def __init__(
        self,
        task: MaskedLmTask,
        samples: Samples,
        validation: Validation,
        mesh: Mesh,
        *,
        batch_size: int,
        size: tuple[int, int],
        networks: NetworkSettings,
        measured: Mapping[str, Any],
    ):
        self._loop = EvaluationLoop(validation, mesh, batch_size)
        self._task, self._samples, self._mesh, self._measured = task, samples, mesh, measured
        self._frozen = task.load_frozen(mesh)
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
        self._decoded = jit_on(mesh, self._pixels, out_shardings=replicated(mesh))
        self._features: FeatureMetrics | None = None
        if samples.number:
            self._features = FeatureMetrics(networks, mesh, clip=(validation.frames, *size))
        # Statistics of the split, the same for all sets of weights.
        self._real: FeatureStatistics | None = None
        self._compared_with: str | None = None

    @property
    def frames(self) -> int:
        """See `Evaluator`."""
        return self._loop.frames

    def _pixels(self, bits: jax.Array, frozen: Mapping[str, Any]) -> jax.Array:
        tokens = self._task.tokenizer.tokens({"bits": bits}, frozen)
        return self._task.tokenizer.pixels(tokens, frozen)

    def _compute(self, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """What is measured of a batch on the mesh, replicated."""
        values: dict[str, Any] = {"sums": self._step(params, batch, self._frozen)}
        if self._features is not None and self._real is None:
            if "pixels" in batch:
                self._compared_with, pixels = ORIGINALS, batch["pixels"]
            else:
                pixels = self._decoded(batch["bits"], self._frozen)
                self._compared_with = RECONSTRUCTIONS
            values["features"] = self._features.features(pixels)
        return values

    def measure(self, params: Any, wanted: Wanted) -> dict[str, Any]:
        """Measures one set of parameters.

        Returns:
          ``count``, examples of the split; ``cross_entropy`` in bits for each masked bit and
          ``accuracy``, the share of masked groups whose likeliest value is right, over one mask of
          each example; and the metrics of ``samples`` samples against the split.
        """
        del wanted
        answers, features = _MaskedAnswers(), self._features
        accumulators: list[Accumulator] = [answers]
        real = self._real
        if features is not None and real is None:
            real = features.new_statistics(self._loop.examples)
            accumulators.append(_WholeClips(real))
        result = self._loop(functools.partial(self._compute, params), accumulators)
        self._real = real
        if features is not None and real is not None:
            result |= features.compare(real, self._sample_statistics(features, params))
            result["samples"] = self._samples.number
        return result

    def _sample_statistics(self, features: FeatureMetrics, params: Any) -> FeatureStatistics:
        """Statistics of samples of all classes in turn."""
        count, first = self._samples.number, 0
        found = features.new_statistics(count)
        samples = self._sample(params, self._labels(count))
        with progress(count, "samples", quiet=jax.process_index() > 0) as advance:
            for _, pixels in advance(samples, lambda sample: len(sample[0])):
                assert pixels is not None
                rows = np.arange(first, first + len(pixels))
                placed, index = self._filled(pixels, rows)
                seen = jax.device_get(features.features(placed))
                mask = np.repeat((index >= 0)[:, None], pixels.shape[1], axis=1)
                found.update(seen, mask, index)
                first += len(pixels)
        return found

    def _filled(self, pixels: np.ndarray, rows: np.ndarray) -> tuple[jax.Array, np.ndarray]:
        """A batch padded to a multiple of the shards, on the mesh; padding has index -1."""
        missing = -len(pixels) % batch_shards(self._mesh)
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        placed = jax.make_array_from_callback(
            pixels.shape, batch_sharding(self._mesh), lambda index: pixels[index]
        )
        return placed, np.concatenate([rows, np.full(missing, -1)])

    def _labels(self, count: int) -> np.ndarray:
        """Classes of `count` samples in turn, or -1 for all, int64 ``[count]``."""
        classes = self._samples.classes
        return np.arange(count) % len(classes) if classes else np.full(count, -1)

    def _sample(
        self, params: Any, labels: np.ndarray
    ) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        """Samples of these classes, see `Sampler`."""
        return self._samples.sampler(
            params, self._frozen, labels, seed=self._task.seed, frames=self._loop.frames
        )

    def describe(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """See `Evaluator`.

        Under ``judges`` the key ``compared_with`` says what samples are compared with, `ORIGINALS`
        or `RECONSTRUCTIONS`.
        """
        record, notes = dict[str, Any](), list[Note]()
        if self._features is not None and self._real is not None:
            record = {**self._features.record(self._real), "compared_with": self._compared_with}
            notes = self._features.notes(self._real)
            if self._compared_with == RECONSTRUCTIONS:
                notes.append(
                    Note(
                        "compared_with",
                        "samples are compared with reconstructions, because the data are tokens: "
                        "what the tokenizer loses is not measured, so these distances are lower "
                        "than those to originals",
                    )
                )
        return {
            "judges": record,
            "notes": [note.text for note in notes],
            "sampling": dict(self._samples.settings),
            "measured": {
                **self._measured,
                "count": next(iter(results.values()))["count"],
                "unreadable": self._loop.unreadable,
                "frames": self._loop.frames,
            },
        }

    def drawings(self, params: Any, results: Mapping[str, Any], wanted: Wanted) -> list[Drawing]:
        """See `Evaluator`: samples, of each class if there are classes, and videos of the first."""
        del results
        each, classes = wanted.pictures, self._samples.classes
        if not each:
            return []
        labels = self._labels(each)
        if classes:
            labels = np.repeat(np.arange(min(len(classes), 10)), each)
        parts = [pixels for _, pixels in self._sample(params, labels) if pixels is not None]
        samples = np.concatenate(parts)

        def draw(path: pathlib.Path) -> None:
            pictures.save_png(path, samples_grid(samples, classes, each))

        found = [Drawing("pictures", "samples", "png", draw)]
        if samples.shape[1] > 1:
            for number, clip in enumerate(samples[: wanted.videos]):
                write = functools.partial(videos.write_mp4, frames=clip)
                found.append(Drawing("videos", f"sample{number}", "mp4", write))
        return found


class _MaskedAnswers:
    """Cross entropy and accuracy over all masked groups."""

    def __init__(self) -> None:
        self._totals = dict.fromkeys(_SUMS, 0.0)

    def update(self, batch: HostBatch) -> None:
        for name in self._totals:
            values = batch.values["sums"][name][batch.counted]
            self._totals[name] += float(np.sum(values, dtype=np.float64))

    def result(self) -> dict[str, float]:
        cross_entropy, right, masked = (self._totals[name] for name in _SUMS)
        if not masked:
            raise UserError("no token was masked: check that the split is not empty")
        return {"cross_entropy": cross_entropy / masked, "accuracy": right / masked}


class _WholeClips:
    """Feature statistics of the clips that have all frames."""

    def __init__(self, statistics: FeatureStatistics):
        self._statistics = statistics

    def update(self, batch: HostBatch) -> None:
        whole = batch.real.all(axis=1, keepdims=True)
        mask = np.broadcast_to(whole, batch.real.shape)
        self._statistics.update(batch.values["features"], mask, batch.index)

    def result(self) -> dict[str, Any]:
        return {}


def samples_grid(samples: np.ndarray, classes: Sequence[str], each: int) -> np.ndarray:
    """A picture of samples: a row for each class, or for each clip.

    Args:
      samples: uint8 ``[sample, time, height, width, 3]``, with classes `each` of the first, then of
        the second.
      classes: their names; empty where there are none.
      each: samples of a class.

    Returns:
      uint8 ``[height, width, 3]``.
    """
    if samples.shape[1] > 1:
        columns = min(8, samples.shape[1])
        return pictures.grid(list(samples[:, :columns]), columns=columns)
    flat = samples[:, 0]
    if not classes:
        return pictures.grid([flat])
    rows = [flat[first : first + each] for first in range(0, len(flat), each)]
    return pictures.grid(rows, labels=list(classes[: len(rows)]), columns=each)


def masked_lm_table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    results, measured, sampling = report["results"], report["measured"], report["sampling"]
    k = report["judges"].get("neighbours", {}).get("k", 0)
    lines = value_lines(_ROWS, results, k=k)
    what, place, _ = measured_words(measured)
    lines.append(
        f"{report['name']}, step {report['step']}: {measured['count']:,d} examples of {what} "
        f"from {place}, one mask each"
    )
    if samples := next(iter(results.values())).get("samples"):
        how = ", ".join(f"{key} {value}" for key, value in sampling.items())
        other = report["judges"]["compared_with"]
        against = "these examples" if other == ORIGINALS else f"{other} of these examples"
        lines.append(f"{samples:,d} samples against {against}: {how}")
    return "\n".join([*lines, *report["notes"], *unreadable_lines(measured["unreadable"])])
