"""What all writers of metrics have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

Values = Mapping[str, float | np.ndarray]  # by name; arrays are float32 and have axes


class MetricWriter(Protocol):
    """Takes what a run measures. It is made on process 0 alone, and called from one thread."""

    def describe(self, config: ConfigDict) -> None:
        """Takes the settings of the run, a finalised config."""

    def write(self, step: int, prefix: str, values: Values) -> None:
        """Takes metrics.

        Args:
          step: the step they belong to; it may come several times, with different prefixes.
          prefix: their group, such as ``train`` or ``val_ema``.
          values: by name; they need not be finite.
        """

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Takes a picture, uint8 ``[height, width, channel 3]``; a name may have many steps."""

    def flush(self) -> None:
        """Makes what was written so far survive the end of this process."""

    def close(self, *, failed: bool = False) -> None:
        """Ends the record; nothing is written after it.

        Args:
          failed: whether the run ends by an error.
        """
