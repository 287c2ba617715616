"""Comparing reconstructions with their originals frame by frame, on the mesh."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bsq_jax.core.chunks import map_chunks
from bsq_jax.core.sharding import jit_on, replicate, replicated
from bsq_jax.data.size_buckets import name
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.catalog import FRAME_METRICS
from bsq_jax.evaluation.feature_metrics import MOST_FRAMES, split_frames
from bsq_jax.evaluation.loop import HostBatch
from bsq_jax.evaluation.metric import FrameMetric, NetworkSettings, Note

ORACLE = "oracle_"
"""Before the keys of values of the oracle, the best picture with one color per patch."""


class FrameMetrics:
    """The frame metrics that the settings ask for and frames of a size allow.

    Args:
      settings: which metrics of frozen networks are wanted.
      mesh: the run's mesh.
      clip: frames, height and width of an example, of several sizes the least of each.
      patch: side of a patch in pixels, or its (height, width), for the oracle.
      metrics: the metrics to choose from.

    Attributes:
      metrics: those that are measured.
      notes: which cannot be measured, and why.
      record: how they are measured, by key, for the report.

    Raises:
      UserError: weights are missing or damaged.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        mesh: Mesh,
        *,
        clip: tuple[int, int, int],
        patch: int | tuple[int, int],
        metrics: Sequence[FrameMetric] = FRAME_METRICS,
    ) -> None:
        self._mesh, self._patch = mesh, patch
        wanted = [m for m in metrics if m.weights is None or m.weights.wanted(settings)]
        self.metrics = [m for m in wanted if min(clip[1:]) >= m.min_side]
        self.notes = [
            Note(m.row.key, f"{m.name} needs pictures of at least {m.min_side} pixels a side")
            for m in wanted
            if m not in self.metrics
        ]
        frozen = {m.row.key: m.weights for m in self.metrics if m.weights is not None}
        self.record = {key: dict(weights.record()) for key, weights in frozen.items()}
        self._params = replicate({key: each.load() for key, each in frozen.items()}, mesh)
        self._compute = jit_on(mesh, self._measure, out_shardings=replicated(mesh))

    def __call__(self, original: jax.Array, reconstruction: jax.Array) -> dict[str, jax.Array]:
        """Measures a batch.

        Args:
          original: uint8 ``[batch, time, height, width, 3]`` on the mesh.
          reconstruction: the same shape.

        Returns:
          Float32 ``[batch, time]`` by key, padding included, replicated; keys that begin with
          `ORACLE` are of the oracle.
        """
        found: dict[str, jax.Array] = self._compute(self._params, original, reconstruction)
        return found

    def _measure(
        self, params: Mapping[str, Any], original: jax.Array, reconstruction: jax.Array
    ) -> dict[str, jax.Array]:
        # A replicated batch is split here: each device takes its own rows of it.
        frames = split_frames(original, self._mesh)
        others = {"": split_frames(reconstruction, self._mesh)}
        others[ORACLE] = jnp.round(metrics.patch_mean(frames, self._patch))
        found = {}
        for metric in self.metrics:
            for prefix in ("", ORACLE) if metric.oracle else ("",):
                key = metric.row.key
                if key in params:
                    values = map_chunks(
                        lambda *pair, metric=metric, key=key: metric.function(params[key], *pair),
                        frames,
                        others[prefix],
                        mesh=self._mesh,
                        most=MOST_FRAMES,
                    )
                else:
                    values = metric.function(frames, others[prefix])
                found[prefix + key] = values.reshape(original.shape[:2])
        return found

    def new_means(self, *, clips: bool) -> FrameMeans:
        """Empty means of these metrics; `clips`: whether examples are clips, not pictures."""
        return FrameMeans(self.metrics, clips=clips)


class FrameMeans:
    """Means over a split, each frame and clip counted once, in float64 on the host.

    Args:
      measured: the metrics.
      clips: whether examples are clips; the result then has values of whole clips, and under
        ``per_frame`` the means at each frame index.
    """

    def __init__(self, measured: Sequence[FrameMetric], *, clips: bool) -> None:
        self._metrics, self._clips = measured, clips
        self._means, self._of_clips = metrics.ClipMeans(), metrics.MeanAccumulator()

    def update(self, batch: HostBatch) -> None:
        """Adds a batch whose ``metrics`` are what `FrameMetrics` returned."""
        found = batch.values["metrics"]
        keys = [prefix + metric.row.key for metric in self._metrics for prefix in ("", ORACLE)]
        values = {key: found[key] for key in keys if key in found}  # in the order of the metrics
        self._means.update(values, batch.counted, batch.frames)
        if not self._clips:
            return
        whole = {}
        for metric in self._metrics:
            for key in (metric.row.key, ORACLE + metric.row.key):
                if metric.of_clip is not None and key in values:
                    prefix = key.removesuffix(metric.row.key)
                    value = metric.of_clip.function(values[key], batch.frames)
                    whole[prefix + metric.of_clip.row.key] = value
        self._of_clips.update(whole, batch.counted)

    def result(self) -> dict[str, Any]:
        """Means by key, of reconstructions and of the oracle."""
        result: dict[str, Any] = self._means.result()
        if self._clips:
            result |= self._of_clips.result()
            result["per_frame"] = self._means.per_frame()
        return result


class MeansBySize:
    """The means of the examples of each size apart, where there are several sizes.

    Args:
      metrics: gives them.
      clips: whether examples are clips.
    """

    def __init__(self, metrics: FrameMetrics, *, clips: bool) -> None:
        self._new = functools.partial(metrics.new_means, clips=clips)
        self._means: dict[tuple[int, int], FrameMeans] = {}
        self._counts: collections.Counter[tuple[int, int]] = collections.Counter()

    def update(self, batch: HostBatch) -> None:
        """Adds a batch with ``pixels``, see `FrameMeans.update`."""
        height, width = batch.values["pixels"].shape[2:4]
        if count := int(batch.counted.sum()):
            self._counts[height, width] += count
            self._means.setdefault((height, width), self._new()).update(batch)

    def result(self) -> dict[str, Any]:
        """Under ``by_size``, by HEIGHTxWIDTH, ``count`` and means of reconstructions by key."""
        if len(self._means) < 2:
            return {}
        found = {}
        for size, means in self._means.items():
            own, _ = split_oracle(means.result())
            own.pop("per_frame", None)
            found[name(size)] = {"count": self._counts[size], **own}
        return {"by_size": found}


def split_oracle(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result as values of the reconstructions, and values of the oracle without `ORACLE`."""
    own = {name: value for name, value in result.items() if not name.startswith(ORACLE)}
    oracle = {
        name.removeprefix(ORACLE): value
        for name, value in result.items()
        if name.startswith(ORACLE)
    }
    if "per_frame" in own:
        own["per_frame"], oracle["per_frame"] = split_oracle(own["per_frame"])
    return own, oracle
