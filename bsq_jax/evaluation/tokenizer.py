"""What is measured of a tokenizer: frames, features and tokens of its reconstructions."""

from __future__ import annotations

import functools
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.sharding import batch_shards, jit_on, replicated
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.settings import DataConfig
from bsq_jax.evaluation import comparison_pictures
from bsq_jax.evaluation.catalog import FRAME_METRICS, TOKEN_METRICS
from bsq_jax.evaluation.comparison_pictures import CLIPS, ORACLE, Examples, KeptExamples
from bsq_jax.evaluation.feature_metrics import FeatureMetrics
from bsq_jax.evaluation.frame_metrics import FrameMetrics, MeansBySize, split_oracle
from bsq_jax.evaluation.loop import Accumulator, EvaluationLoop, HostBatch, Validation
from bsq_jax.evaluation.metric import FrameMetric, NetworkSettings, TokenMetric
from bsq_jax.evaluation.metrics import FeatureStatistics
from bsq_jax.evaluation.photographs import (
    load_photographs,
    reconstruct_photograph,
    reconstruct_whole,
)
from bsq_jax.evaluation.report import Drawing, Wanted
from bsq_jax.media.figures import line_figure
from bsq_jax.media.pictures import save_png
from bsq_jax.media.videos import write_mp4
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.quantizers.layout import TokenLayout


class TokenizerTask(Protocol):
    """What is evaluated."""

    @property
    def model(self) -> TokenizerModel:
        """The network."""
        ...

    def evaluate_step(self, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """``reconstruction`` uint8, the shape of ``pixels``, and ``bits`` ``[batch, ..., L]``."""
        ...


class TokenizerEvaluator:
    """Measures parameters of a tokenizer on a validation split, see `Evaluator`.

    Args:
      task: gives the evaluation step.
      data: which split to read, and how.
      mesh: the run's mesh.
      batch_size: global; rounded up to a multiple of the number of shards.
      networks: which metrics of frozen networks are measured besides; none by default.
      own: metrics of the user's own, measured besides.
      beside: another model to show beside this one in the picture of photographs: what to call it,
        and a function that reconstructs a picture uint8 ``[height, width, 3]``; None: there is
        none.

    Raises:
      UserError: the split cannot be read, or the weights of a network.
    """

    def __init__(
        self,
        task: TokenizerTask,
        data: DataConfig,
        mesh: Mesh,
        *,
        batch_size: int,
        networks: NetworkSettings | None = None,
        own: Sequence[FrameMetric] = (),
        beside: tuple[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    ):
        examples = eval_examples(data)
        shards = batch_shards(mesh)
        make = functools.partial(eval_batches, data, examples=examples, multiple=shards)
        count = len(examples.records)
        self.loop = EvaluationLoop(Validation(make, examples.frames, count), mesh, batch_size)
        self._source, self._data, self._mesh = examples.source, data, mesh
        self._shape, self._dtype = task.model.shape, task.model.dtype
        self._layout = task.model.quantizer.layout
        # Replicated: every host then holds the reconstructions of all examples.
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
        self._sizes = examples.used_crops()
        smallest = (min(sides) for sides in zip(*self._sizes, strict=True))
        settings, clip = networks or NetworkSettings(), (examples.frames, *smallest)
        self._own, self._beside = own, beside
        self._frames = FrameMetrics(
            settings,
            mesh,
            clip=clip,
            patch=self._shape.patch,
            metrics=(*FRAME_METRICS, *own),
        )
        self._features = FeatureMetrics(settings, mesh, clip=clip)
        # Statistics of the originals, the same for all sets of weights.
        self._originals: FeatureStatistics | None = None
        self._shown: Examples | None = None
        self._oracle: dict[str, Any] = {}

    @property
    def frames(self) -> int:
        """See `Evaluator`."""
        return self.loop.frames

    @property
    def _clips(self) -> bool:
        return self.loop.frames > 1

    def _compute(self, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """What is measured of a batch on the mesh, replicated."""
        names = ("pixels", "frames") if self._clips else ("pixels",)
        output = self._step(params, {name: batch[name] for name in names})
        original, reconstruction = batch["pixels"], output["reconstruction"]
        values = {
            "pixels": self.loop.replicate(original),
            "reconstruction": reconstruction,
            "bits": output["bits"],
            "metrics": self._frames(original, reconstruction),
        }
        if self._features.networks:
            values["features"] = self._features.features(reconstruction)
            if self._originals is None:
                values["original_features"] = self._features.features(original)
        return values

    def measure(self, params: Any, wanted: Wanted) -> dict[str, Any]:
        """Measures one set of parameters.

        Args:
          params: parameters of the task's model, on the mesh.
          wanted: how many examples are kept to be drawn: the first pictures; clips, and pictures
            of several sizes, evenly spaced over the split.

        Returns:
          The metrics by key with ``count``. Of clips a mean is the mean over clips of the mean over
          a clip's frames, but ``psnr_clip`` the mean of the clips' PSNR, each from the squared
          error of the whole clip; and ``per_frame`` has the means over clips at each frame index.
          Of several sizes ``by_size`` has the metrics of frames of each.
        """
        kept = wanted.pictures
        if self._clips:
            kept = max(min(wanted.pictures, CLIPS), wanted.videos)
        pair = _PairStatistics(self._features, self._originals, self.loop.examples)
        spaced = self._clips or len(self._sizes) > 1
        patch_time = self._shape.patch_time
        examples = KeptExamples(kept, self.loop.examples, spaced=spaced)
        accumulators: list[Accumulator] = [
            self._frames.new_means(clips=self._clips),
            MeansBySize(self._frames, clips=self._clips),
            pair,
            *(_TokenCounts(metric, self._layout, patch_time) for metric in TOKEN_METRICS),
            examples,
        ]
        result = self.loop(functools.partial(self._compute, params), accumulators)
        self._originals, self._shown = pair.originals, examples.kept()
        own, self._oracle = split_oracle(result)
        return own

    def describe(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """See `Evaluator`."""
        record: dict[str, Any] = dict(self._frames.record)
        if self._originals is not None:
            record |= self._features.record(self._originals)
        notes = self._frames.notes + self._features.notes(self._originals, self.loop.shorter)
        return {
            "oracle": {"name": ORACLE, "bits_a_patch": 24, **self._oracle},
            "judges": record,
            "notes": [note.text for note in notes],
            "own_metrics": [list(metric.row) for metric in self._own],
            "measured": self._measured(next(iter(results.values()))["count"]),
        }

    def _measured(self, count: int) -> dict[str, Any]:
        data = self._data
        resize = f"short side to {data.eval_resize} pixels"
        if data.eval_crop == "bucket":
            resize = "resized to cover the crop"
        mean = "pictures"
        if self._clips:
            mean = "clips of the mean over a clip's frames; psnr_clip from a clip's mean squared"
            mean += " error"
        return {
            "split": "val",
            "source": data.val_source or data.source,
            "count": count,
            "unreadable": self.loop.unreadable,
            "frames": self.loop.frames,
            "shorter": self.loop.shorter,
            "stride": data.stride,
            "image_size": list(data.crop),
            "sizes": [list(size) for size in self._sizes],
            "resize": f"{resize}, {data.eval_filter}",
            "crop": data.eval_crop,
            "stages": self._layout.stages,
            "codes": self._layout.codes,
            "values": f"8 bits a channel, mean over {mean}",
            "dtype": jnp.dtype(self._dtype).name,
            "backend": jax.default_backend(),
            "python": platform.python_version(),
            "versions": {p: metadata.version(p) for p in ("jax", "flax", "pillow", "numpy")},
        }

    def drawings(self, params: Any, results: Mapping[str, Any], wanted: Wanted) -> list[Drawing]:
        """See `Evaluator`: examples, whole photographs, PSNR over time, and videos."""
        found, shown, shape = [], self._shown, self._shape
        if shown and wanted.pictures:

            def draw(path: pathlib.Path, shown: Examples = shown) -> None:
                save_png(path, comparison_pictures.examples_picture(shown, shape.patch))

            found.append(Drawing("pictures", "clips" if self._clips else "crops", "png", draw))
        if wanted.pictures and (photographs := self._photographs(params)) is not None:
            draw = functools.partial(save_png, picture=photographs)
            found.append(Drawing("pictures", "photographs", "png", draw))
        if self._clips and wanted.pictures:
            of = {name: r["per_frame"] for name, r in results.items()}
            of[ORACLE] = self._oracle["per_frame"]
            lines = {name: list(enumerate(values["psnr"])) for name, values in of.items()}
            draw = functools.partial(
                line_figure, lines=lines, x="index of the frame", y="PSNR (dB)"
            )
            found.append(Drawing("pictures", "per_frame", "png", draw))
        for number, clip in enumerate(
            comparison_pictures.side_by_side(shown, wanted.videos, shape.bits)
        ):
            draw = functools.partial(write_mp4, frames=clip)
            found.append(Drawing("videos", f"clip{number}", "mp4", draw))
        return found

    def _photographs(self, params: Any) -> np.ndarray | None:
        """A picture of whole photographs; None for videos, and where none is readable."""
        if self._source.videos or not (originals := load_photographs(self._source, self._data)):
            return None

        def reconstruct(batch: dict[str, jax.Array]) -> jax.Array:
            pixels: jax.Array = self._step(params, batch)["reconstruction"]
            return pixels

        def whole(image: np.ndarray) -> np.ndarray:
            if self._shape.spatial_window:
                return reconstruct_whole(reconstruct, image, self._mesh)
            return reconstruct_photograph(
                reconstruct, image, self.loop, self._mesh, self._data.crop
            )

        made, others = [whole(image) for image in originals], {}
        if self._beside is not None:
            name, reconstruct_beside = self._beside
            others[name] = [reconstruct_beside(image) for image in originals]
        return comparison_pictures.photographs_picture(
            originals, made, patch=self._shape.patch, bits=self._shape.bits, others=others
        )


class _PairStatistics:
    """Feature statistics of reconstructions, and of the originals unless they are known."""

    def __init__(self, metrics: FeatureMetrics, originals: FeatureStatistics | None, examples: int):
        self._metrics = metrics
        self._made = metrics.new_statistics(examples)
        self.originals = originals or metrics.new_statistics(examples)

    def update(self, batch: HostBatch) -> None:
        sets = {"features": self._made, "original_features": self.originals}
        for name, statistics in sets.items():
            if name in batch.values:
                statistics.update(batch.values[name], batch.real, batch.index)

    def result(self) -> dict[str, float]:
        return self._metrics.compare(self.originals, self._made)


class _TokenCounts:
    """A metric of the tokens of real frames."""

    def __init__(self, metric: TokenMetric, layout: TokenLayout, patch_time: int):
        self._accumulator, self._time = metric.accumulator(layout), patch_time

    def update(self, batch: HostBatch) -> None:
        # Tokens of a group of frames are real if its first frame is.
        real = np.concatenate([batch.real[:, :1], batch.real[:, 1 :: self._time]], axis=1)
        self._accumulator.update(batch.values["bits"], real)

    def result(self) -> Mapping[str, Any]:
        return self._accumulator.result()
