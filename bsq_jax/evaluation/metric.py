"""What a metric is: how it is measured, how a table shows it, what is noted if it is not measured.

The metrics themselves stand in the lists of `bsq_jax.evaluation.catalog`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import numpy.typing as npt

from bsq_jax.evaluation.metrics import FeatureStatistics
from bsq_jax.quantizers.layout import TokenLayout


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      key: of the value in the results.
      title: what the line is called; ``{k}`` is the number of neighbours.
      template: format of the value.
    """

    key: str
    title: str
    template: str


class Note(NamedTuple):
    """A line below a table about a metric.

    Attributes:
      metric: key of its value in the results.
      text: why it is not measured, or what to know about the value.
    """

    metric: str
    text: str


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Which metrics of frozen networks are measured.

    Attributes:
      lpips: LPIPS with AlexNet features, where frames are large enough.
      frechet: Frechet distances in VGG16 features of frames and, for clips that are long enough, in
        I3D logits (FVD).
      inception: file of Inception-v3 weights for FID and Inception score; empty for neither.
      neighbours: k of precision and recall, in the features of Inception-v3 or, without its
        weights, in those of VGG16 if `frechet` is set; 0 for neither.
      neighbours_examples: the most frames that precision and recall compare, evenly spaced over
        the split.
    """

    lpips: bool = False
    frechet: bool = False
    inception: str = ""
    neighbours: int = 0
    neighbours_examples: int = 10_000


@dataclasses.dataclass(frozen=True)
class FrozenWeights:
    """Weights of a network that a frame metric needs.

    Attributes:
      load: loads them.
      record: where they come from, for the report.
      wanted: whether the settings ask for this metric.
    """

    load: Callable[[], Any]
    record: Callable[[], Mapping[str, Any]]
    wanted: Callable[[NetworkSettings], bool]


@dataclasses.dataclass(frozen=True)
class ClipValue:
    """A value of whole clips that follows from those of their frames.

    Attributes:
      row: its key in the results, and its line in the table.
      function: of values ``[batch, time]`` and real frames ``[batch]``; gives ``[batch]``.
    """

    row: Row
    function: Callable[[npt.ArrayLike, npt.ArrayLike], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FrameMetric:
    """Compares each frame of a reconstruction with the original; reported as the mean over clips.

    Attributes:
      row: key and line in the table.
      name: for notes.
      function: of originals and reconstructions, uint8 ``[batch, time, height, width, 3]``, with
        `weights` of these weights before both; gives float32 ``[batch, time]``. It is jitted.
      min_side: least height and width of a frame in pixels.
      oracle: whether it is also measured of the best picture with one color per patch.
      of_clip: what is reported of whole clips besides.
      weights: of a frozen network; None if it needs none.
    """

    row: Row
    name: str
    function: Callable[..., jax.Array]
    min_side: int = 1
    oracle: bool = False
    of_clip: ClipValue | None = None
    weights: FrozenWeights | None = None


@dataclasses.dataclass(frozen=True)
class FeatureMetric(abc.ABC):
    """Compares two sets of pixels by the features that a frozen network has of them."""

    @property
    @abc.abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """Keys in the results, and lines in the table."""

    @abc.abstractmethod
    def network(self, loaded: Mapping[str, Any], settings: NetworkSettings) -> str | None:
        """Which of the loaded networks gives the features; None if this cannot be measured."""

    @abc.abstractmethod
    def measure(
        self, network: str, real: FeatureStatistics, fake: FeatureStatistics, k: int
    ) -> dict[str, float]:
        """Values by key; empty if there are too few samples."""

    @abc.abstractmethod
    def record(self, network: str, weights: str, real: FeatureStatistics, k: int) -> dict[str, Any]:
        """How it was measured against `real`, by key, for the report."""

    @abc.abstractmethod
    def notes(self, network: str, real: FeatureStatistics, k: int) -> list[Note]:
        """What to know about the values."""


class TokenAccumulator(Protocol):
    """Counts tokens."""

    def update(self, bits: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> None:
        """Adds bits ``[batch, ..., L]``; the mask says which count."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Values by key."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenMetric:
    """Measures the tokens of a split.

    Attributes:
      rows: keys in the results, and lines in the table.
      accumulator: makes the counter, of the layout of the tokens' bits.
    """

    rows: tuple[Row, ...]
    accumulator: Callable[[TokenLayout], TokenAccumulator]
