"""Comparing sets of pixels: frozen networks, their features, statistics of these, distances.

Networks run on the mesh, a few frames at a time on each device. Statistics are summed up on the
host in float64, every example once, whatever the batch size and the number of hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from bsq_jax.core.chunks import map_chunks
from bsq_jax.core.sharding import batch_sharding, jit_on, replicate, replicated
from bsq_jax.evaluation.catalog import FEATURE_METRICS
from bsq_jax.evaluation.distances import PrecisionRecall
from bsq_jax.evaluation.frozen_networks import (
    NETWORKS,
    clip_features,
    frame_features,
    inception_v3,
    load_networks,
)
from bsq_jax.evaluation.metric import FeatureMetric, NetworkSettings, Note
from bsq_jax.evaluation.metrics import FeatureStatistics

MOST_FRAMES = 16
"""The most frames that a network takes at once on a device."""
_MOST_CLIPS = 2


class FeatureMetrics:
    """The metrics of features that the settings ask for and examples of a size allow.

    Args:
      settings: which metrics are wanted.
      mesh: the run's mesh.
      clip: frames, height and width of an example, of several sizes the least of each.
      metrics: the metrics to choose from.

    Attributes:
      networks: names of the networks that were loaded, keys of `NETWORKS`.
      neighbours: name of the network whose features precision and recall compare; None for none.
      weights: where the weights come from, by the name of the network, for the report.

    Raises:
      UserError: weights are missing or damaged.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        mesh: Mesh,
        *,
        clip: tuple[int, int, int],
        metrics: Sequence[FeatureMetric] = FEATURE_METRICS,
    ) -> None:
        loaded = load_networks(settings, clip)
        self._settings, self._mesh, self._frames = settings, mesh, clip[0]
        self._notes, self.weights = loaded.notes, loaded.weights
        self.networks = [name for name in NETWORKS if name in loaded.params]
        self._metrics = [
            (metric, network)
            for metric in metrics
            if (network := metric.network(loaded.params, settings)) is not None
        ]
        samples = [of for metric, of in self._metrics if isinstance(metric, PrecisionRecall)]
        self.neighbours = samples[0] if samples else None
        self._params = replicate(loaded.params, mesh)
        self._compute = jit_on(mesh, self._features, out_shardings=replicated(mesh))

    def features(self, pixels: jax.Array) -> dict[str, jax.Array]:
        """Features of a batch.

        Args:
          pixels: uint8 ``[batch, time, height, width, 3]`` on the mesh.

        Returns:
          What `FeatureStatistics.update` takes: ``[batch, samples, dimension]`` by the name of the
          network, and ``logits``; replicated.
        """
        found: dict[str, jax.Array] = self._compute(self._params, pixels)
        return found

    def _features(self, params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = map_chunks(
            lambda frames: frame_features(params, frames),
            split_frames(pixels, self._mesh),
            mesh=self._mesh,
            most=MOST_FRAMES,
        )
        if "i3d" in params:
            found["i3d"] = map_chunks(
                lambda clips: clip_features(params, clips),
                pixels,
                mesh=self._mesh,
                most=_MOST_CLIPS,
            )
        return {
            name: values.reshape(len(pixels), -1, values.shape[-1])
            for name, values in found.items()
        }

    def new_statistics(self, examples: int) -> FeatureStatistics:
        """Empty statistics for the features of a set of so many examples."""
        dimensions = {name: NETWORKS[name].dimension for name in self.networks}
        classes = inception_v3.CLASSES if "inception" in self.networks else 0
        kept = max(self._settings.neighbours_examples // self._frames, 1)
        return FeatureStatistics(
            dimensions, classes, kept=self.neighbours, share=(kept, max(examples, 1))
        )

    def compare(self, real: FeatureStatistics, fake: FeatureStatistics) -> dict[str, float]:
        """Values by key of one set against another; what too few samples do not allow is absent."""
        k, result = self._settings.neighbours, dict[str, float]()
        for metric, network in self._metrics:
            result |= metric.measure(network, real, fake, k)
        return result

    def record(self, real: FeatureStatistics) -> dict[str, Any]:
        """How metrics were measured against a set, by key, for the report."""
        k, found = self._settings.neighbours, dict[str, Any]()
        for metric, network in self._metrics:
            found |= metric.record(network, self.weights[network], real, k)
        return found

    def notes(self, real: FeatureStatistics | None = None, too_short: int = 0) -> list[Note]:
        """What is not measured and why, and what to know about the values.

        Args:
          real: the set that others are compared with; None before there is one.
          too_short: how many of its clips have fewer frames than the others.
        """
        notes = list(self._notes)
        if real is None:
            return notes
        if "i3d" in self.networks and too_short:
            notes.append(Note("fvd", f"FVD: {too_short:,d} clips that are too short are left out"))
        for metric, network in self._metrics:
            notes += metric.notes(network, real, self._settings.neighbours)
        return notes


def split_frames(pixels: jax.Array, mesh: Mesh) -> jax.Array:
    """Clips ``[batch, time, ...]`` as frames ``[batch * time, 1, ...]``, split over the devices."""
    # A replicated batch is split here: each device takes its own rows of it.
    pixels = jax.lax.with_sharding_constraint(pixels, batch_sharding(mesh))
    return pixels.reshape(-1, 1, *pixels.shape[2:])
