"""How well a masked language model knows its tokens, and how good what it generates is."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.sharding import (
    batch_sharding,
    batch_shards,
    gather_strings,
    host_shard,
    jit_on,
    replicated,
    to_global,
)
from bsq_jax.core.text import aligned
from bsq_jax.data.batches import Batches
from bsq_jax.data.tokens import measured_words
from bsq_jax.evaluation.feature_networks import Judging, Networks
from bsq_jax.evaluation.metrics import FeatureSet
from bsq_jax.evaluation.tokenizer import on_first_process
from bsq_jax.media import pictures, videos
from bsq_jax.models.masked_lm.sampler import Sampler

_NAMES = {
    "cross_entropy": ("cross entropy (bits for each masked bit)", "{:.4f}"),
    "accuracy": ("right words", "{:.1%}"),
    "fid": ("FID of {samples}", "{:.2f}"),
    "inception_score": ("Inception score of samples", "{:.2f}"),
    "frechet_vgg16": ("Frechet distance of {samples}, VGG16", "{:.2f}"),
    "precision": ("precision of {samples}", "{:.3f}"),
    "recall": ("recall of {samples}", "{:.3f}"),
    "fvd": ("FVD of {samples}", "{:.2f}"),
}
# What samples are compared with: the pictures, or what the tokenizer makes of them where the data
# are its tokens and there are no pictures.
ORIGINALS, RECONSTRUCTIONS = "originals", "reconstructions"


class MaskedLmEvaluator:
    """Measures parameters of a masked language model."""

    def __init__(
        self,
        task: Any,
        sampler: Sampler,
        make_batches: Callable[..., Batches],
        mesh: Mesh,
        *,
        batch_size: int,
        examples: int,
        frames: int,
        size: tuple[int, int],
        judging: Judging,
        samples: int,
        classes: Sequence[str],
    ):
        """Prepares an evaluation.

        Args:
          task: gives the evaluation step.
          sampler: generates.
          make_batches: the validation batches of a host, for the keywords ``global_batch``,
            ``shard_index`` and ``shard_count``.
          mesh: the run's mesh.
          batch_size: global; rounded up to what the mesh divides.
          examples: number of examples in the split.
          frames: of the clips in a batch.
          size: (height, width) of a frame in pixels.
          judging: which networks compare samples with the validation split.
          samples: how many are compared; 0 for none.
          classes: names of the classes; samples take turns at them.

        Raises:
          UserError: the weights of a network are missing or damaged.
        """
        shards = batch_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        self._task, self._sampler = task, sampler
        self._make_batches, self._mesh = make_batches, mesh
        self.frames, self.classes = frames, tuple(classes)
        self._wanted = samples
        self._frozen = task.load_frozen(mesh)
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
        self._whole = jit_on(mesh, lambda tree: tree, out_shardings=replicated(mesh))
        self._decoded = jit_on(mesh, self._pixels, out_shardings=replicated(mesh))
        judging = dataclasses.replace(judging, lpips=False)  # samples have no original
        self._networks = Networks(judging, mesh, clip=(frames, *size)) if samples else None
        kept = max(judging.neighbours_examples // frames, 1)
        self._shares = (kept, max(examples, 1)), (kept, max(samples, 1))
        self._real: FeatureSet | None = None
        self.compared_with: str | None = None
        self.unreadable: list[str] = []

    def _pixels(self, bits: jax.Array, frozen: Mapping[str, Any]) -> jax.Array:
        tokens = self._task.tokenizer.tokens({"bits": bits}, frozen)
        return self._task.tokenizer.pixels(tokens, frozen)

    def labels(self, count: int) -> np.ndarray:
        """Classes of `count` samples in turn, or -1 for all, int64 ``[count]``."""
        return np.arange(count) % len(self.classes) if self.classes else np.full(count, -1)

    def __call__(self, params: Any) -> dict[str, Any]:
        """Measures one set of parameters.

        Returns:
          ``count``, examples of the split; ``cross_entropy`` in bits for each masked bit and
          ``accuracy``, the share of masked words whose likeliest guess is right, over one mask of
          each example; and the measures of samples against the split.
        """
        shard = host_shard(self._mesh, self._batch_size)
        batches = self._make_batches(
            global_batch=self._batch_size, shard_index=shard.index, shard_count=shard.count
        )
        totals = dict.fromkeys(("cross_entropy", "right", "masked"), 0.0)
        count = 0
        networks = self._networks
        fresh = self._real is None and networks is not None
        real = networks.new_set(self._shares[0]) if networks is not None and fresh else self._real
        for local in batches:
            batch = to_global(local, self._mesh)
            found, beside = jax.device_get(
                (
                    self._step(params, batch, self._frozen),
                    self._whole({k: batch[k] for k in ("frames", "mask", "index")}),
                )
            )
            counted = beside["mask"] > 0
            count += int(counted.sum())
            for name in totals:
                totals[name] += float(np.sum(found[name][counted], dtype=np.float64))
            if fresh:
                assert networks is not None
                assert real is not None
                self.compared_with = ORIGINALS if "pixels" in batch else RECONSTRUCTIONS
                pixels = (
                    batch["pixels"]
                    if "pixels" in batch
                    else self._decoded(batch["bits"], self._frozen)
                )
                whole = counted & (beside["frames"] == pixels.shape[1])
                _look(networks, real, pixels, np.where(whole, beside["index"], -1))
        self.unreadable = gather_strings(batches.stats()["broken_ids"])
        batches.close()
        if not totals["masked"]:
            raise UserError("no example was counted: check that the split is not empty")
        result = {
            "count": count,
            "cross_entropy": totals["cross_entropy"] / totals["masked"],
            "accuracy": totals["right"] / totals["masked"],
        }
        if networks is not None:
            assert real is not None
            self._real = real
            fake = networks.new_set(self._shares[1])
            for pixels, first in self._generated(params):
                rows = np.arange(first, first + len(pixels))
                _look(networks, fake, *self._filled(pixels, rows))
            result |= networks.compare(real, fake) | {"samples": self._wanted}
        return result

    def _generated(self, params: Any) -> Iterator[tuple[np.ndarray, int]]:
        first = 0
        for _, pixels in self.sample(params, self.labels(self._wanted)):
            assert pixels is not None
            yield pixels, first
            first += len(pixels)

    def _filled(self, pixels: np.ndarray, rows: np.ndarray) -> tuple[jax.Array, np.ndarray]:
        """A batch on the mesh of a size that it divides; rows that do not count have number -1."""
        missing = -len(pixels) % batch_shards(self._mesh)
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        placed = jax.make_array_from_callback(
            pixels.shape, batch_sharding(self._mesh), lambda index: pixels[index]
        )
        return placed, np.concatenate([rows, np.full(missing, -1)])

    def sample(
        self, params: Any, labels: np.ndarray
    ) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        """Samples of these classes, see `Sampler`."""
        return self._sampler(params, self._frozen, labels, seed=self._task.seed, frames=self.frames)

    def about(self) -> tuple[dict[str, Any], list[str]]:
        """How samples were measured, for the record, and lines for below the table.

        The record says under ``compared_with`` whether the other set were `ORIGINALS` or
        `RECONSTRUCTIONS`.
        """
        if self._networks is None or self._real is None:
            return {}, []
        networks, real = self._networks, self._real
        notes = networks.notes + networks.neighbours_note(real) + networks.biased(real)
        if self.compared_with == RECONSTRUCTIONS:
            notes.append(
                "samples are compared with reconstructions, because the data are tokens: what the "
                "tokenizer loses does not count, so compare with no distance to originals"
            )
        return {**networks.about(real), "compared_with": self.compared_with}, notes


def _look(networks: Networks, seen: FeatureSet, pixels: jax.Array, number: np.ndarray) -> None:
    """Adds the features of a batch of whole clips to a set; numbers below 0 do not count."""
    features = dict(jax.device_get(networks.look(networks.params, pixels)))
    logits = features.pop("logits", None)
    mask = np.repeat((number >= 0)[:, None], pixels.shape[1], axis=1)
    seen.update(features, logits, mask, number)


def evaluate_masked_lm(
    evaluator: MaskedLmEvaluator,
    weights: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    name: str,
    step: int,
    measured: Mapping[str, Any],
    pictures_wanted: int,
    videos_wanted: int,
    sampling: Mapping[str, Any],
    suffix: str = "",
) -> dict[str, Any]:
    """Evaluates each set of weights; process 0 writes ``evaluation.json``, pictures and videos.

    Args:
      evaluator: the evaluator.
      weights: parameters by name, such as ``raw`` and ``ema``; samples shown are of the last.
      workdir: folder of the run.
      name: the model's name, for the record.
      step: training step of the weights, for the record and the names of the pictures.
      measured: on what, for the record, see `bsq_jax.data.tokens.measured`.
      pictures_wanted: samples shown, of each class if there are classes; 0 for no picture.
      videos_wanted: clips written as videos.
      sampling: settings, for the record.
      suffix: put before the ending of all file names.

    Returns:
      The report that was written.

    Raises:
      UserError: the folder cannot be written to.
    """
    path = workdir / f"evaluation{suffix}.json"
    results = {label: evaluator(params) for label, params in weights.items()}
    judges, notes = evaluator.about()
    report: dict[str, Any] = {
        "name": name,
        "step": step,
        "results": results,
        "judges": judges,
        "notes": notes,
        "sampling": dict(sampling),
        "measured": {
            **measured,
            "count": next(iter(results.values()))["count"],
            "unreadable": evaluator.unreadable,
            "frames": evaluator.frames,
        },
        "path": str(path),
        "pictures": [],
        "videos": [],
    }
    shown = None
    if pictures_wanted:
        classes = min(len(evaluator.classes), 10)
        labels = evaluator.labels(pictures_wanted)
        if classes:
            labels = np.repeat(np.arange(classes), pictures_wanted)
        parts = evaluator.sample(list(weights.values())[-1], labels)
        shown = np.concatenate([pixels for _, pixels in parts if pixels is not None])

    def place(kind: str, stem: str, ending: str) -> pathlib.Path:
        file = workdir / kind / f"{stem}_{step:07d}{suffix}.{ending}"
        report[kind].append(str(file))
        return file

    def write() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        if shown is not None:
            sheet = samples_grid(shown, evaluator.classes, pictures_wanted)
            pictures.save_png(place("pictures", "samples", "png"), sheet)
            if shown.shape[1] > 1:
                for number, clip in enumerate(shown[:videos_wanted]):
                    videos.write_mp4(place("videos", f"sample{number}", "mp4"), clip)
        write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())

    on_first_process(workdir, write)
    return report


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
    results = report["results"]
    other = report["judges"].get("compared_with", ORIGINALS)
    compared = "samples" if other == ORIGINALS else f"samples against {other}"
    lines = [["", *results]]
    for key, (title, how) in _NAMES.items():
        if all(key in result for result in results.values()):
            title = title.format(samples=compared)
            lines.append([title, *(how.format(result[key]) for result in results.values())])
    rows = aligned(lines)
    rows.insert(1, "-" * len(rows[0]))
    measured, sampling = report["measured"], report["sampling"]
    what, place, _ = measured_words(measured)
    rows.append(
        f"{report['name']}, step {report['step']}: {measured['count']:,d} examples of {what} "
        f"from {place}, one mask each"
    )
    samples = next(iter(results.values())).get("samples")
    if samples:
        how = ", ".join(f"{key} {value}" for key, value in sampling.items())
        whom = "these examples" if other == ORIGINALS else f"{other} of these examples"
        rows.append(f"{samples:,d} samples against {whom}: {how}")
    rows += report["notes"]
    if measured["unreadable"]:
        rows.append(f"not readable and left out: {', '.join(measured['unreadable'])}")
    return "\n".join(rows)
