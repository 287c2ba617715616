"""Metrics that compare two sets by the features that frozen networks have of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.frozen_networks import NETWORKS
from bsq_jax.evaluation.metric import FeatureMetric, NetworkSettings, Note, Row
from bsq_jax.evaluation.metrics import FeatureStatistics

_MEANINGFUL = 300  # frames, below which precision and recall depend on single ones


@dataclasses.dataclass(frozen=True)
class FrechetDistance(FeatureMetric):
    """Frechet distance between Gaussians of the features: FID, FVD and the like.

    Attributes:
      row: key and line in the table.
      of: name of the network, a key of `NETWORKS`.
      name: for notes.
    """

    row: Row
    of: str
    name: str

    @property
    def rows(self) -> tuple[Row, ...]:
        """See `FeatureMetric`."""
        return (self.row,)

    def network(self, loaded: Mapping[str, Any], settings: NetworkSettings) -> str | None:
        """See `FeatureMetric`."""
        del settings
        return self.of if self.of in loaded else None

    def measure(
        self, network: str, real: FeatureStatistics, fake: FeatureStatistics, k: int
    ) -> dict[str, float]:
        """See `FeatureMetric`."""
        del k
        moments = real.moments[network], fake.moments[network]
        if min(each.count for each in moments) < 2:
            return {}
        return {self.row.key: metrics.frechet_distance(*moments)}

    def record(self, network: str, weights: str, real: FeatureStatistics, k: int) -> dict[str, Any]:
        """See `FeatureMetric`."""
        del k
        described = {
            "weights": weights,
            "dimension": NETWORKS[network].dimension,
            "samples": real.moments[network].count,
            "sample": NETWORKS[network].sample,
        }
        return {self.row.key: described}

    def notes(self, network: str, real: FeatureStatistics, k: int) -> list[Note]:
        """See `FeatureMetric`."""
        del k
        count, features = real.moments[network].count, NETWORKS[network]
        if count < 2:
            return [Note(self.row.key, f"{self.name} needs at least 2 {features.sample}")]
        if count >= 10 * features.dimension:
            return []
        few = f"{count:,d} {features.sample} in {features.dimension:,d} dimensions"
        text = f"{self.name} is biased upwards ({few}): compare it at equal numbers only"
        return [Note(self.row.key, text)]


@dataclasses.dataclass(frozen=True)
class InceptionScoreOfFake(FeatureMetric):
    """The Inception score of the second set; the report has that of the first too."""

    row: Row

    @property
    def rows(self) -> tuple[Row, ...]:
        """See `FeatureMetric`."""
        return (self.row,)

    def network(self, loaded: Mapping[str, Any], settings: NetworkSettings) -> str | None:
        """See `FeatureMetric`."""
        del settings
        return "inception" if "inception" in loaded else None

    def measure(
        self, network: str, real: FeatureStatistics, fake: FeatureStatistics, k: int
    ) -> dict[str, float]:
        """See `FeatureMetric`."""
        del real, k
        return {self.row.key: fake.inception_score()} if fake.moments[network].count else {}

    def record(self, network: str, weights: str, real: FeatureStatistics, k: int) -> dict[str, Any]:
        """See `FeatureMetric`."""
        del k
        described: dict[str, Any] = {"weights": weights, "splits": 1}
        if real.moments[network].count:
            described["of_originals"] = real.inception_score()
        return {self.row.key: described}

    def notes(self, network: str, real: FeatureStatistics, k: int) -> list[Note]:
        """See `FeatureMetric`."""
        del k
        if real.moments[network].count:
            return []
        return [Note(self.row.key, "Inception score needs at least 1 frame")]


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(FeatureMetric):
    """Precision and recall by nearest neighbours, in the features of the first network loaded.

    Attributes:
      precision: key and line in the table.
      recall: the same.
      of: names of the networks, the preferred one first.
    """

    precision: Row
    recall: Row
    of: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """See `FeatureMetric`."""
        return self.precision, self.recall

    def network(self, loaded: Mapping[str, Any], settings: NetworkSettings) -> str | None:
        """See `FeatureMetric`."""
        usable = [name for name in self.of if name in loaded]
        return usable[0] if usable and settings.neighbours else None

    def measure(
        self, network: str, real: FeatureStatistics, fake: FeatureStatistics, k: int
    ) -> dict[str, float]:
        """See `FeatureMetric`."""
        samples = real.sample(), fake.sample()
        if min(map(len, samples)) <= k:
            return {}
        precision, recall = metrics.precision_recall(*samples, k=k)
        return {self.precision.key: precision, self.recall.key: recall}

    def record(self, network: str, weights: str, real: FeatureStatistics, k: int) -> dict[str, Any]:
        """See `FeatureMetric`."""
        described = {"features": NETWORKS[network].name, "k": k, "frames": len(real.sample())}
        return {"neighbours": described}

    def notes(self, network: str, real: FeatureStatistics, k: int) -> list[Note]:
        """See `FeatureMetric`."""
        count = len(real.sample())
        few = ""
        if count < _MEANINGFUL:
            few = f", which are too few{' to say anything' * (count > k)}"
        features = f"{NETWORKS[network].name} features of {count:,d} frames{few}"
        return [Note(self.precision.key, f"precision and recall: k={k}, {features}")]
