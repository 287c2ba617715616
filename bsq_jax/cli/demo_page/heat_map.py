"""Numbers as colours."""

from __future__ import annotations

import numpy as np

_STOPS = ((22, 18, 58), (52, 62, 150), (24, 138, 150), (104, 196, 96), (252, 230, 70))
COLOURS = tuple("#{:02x}{:02x}{:02x}".format(*stop) for stop in _STOPS)
"""From the lowest value to the highest, as style sheets write them; evenly spaced."""


def heat_map(values: np.ndarray, highest: float) -> np.ndarray:
    """A picture of numbers from 0 to `highest`.

    Args:
      values: of any shape ``[...]``.
      highest: what the last colour stands for, and all above it.

    Returns:
      uint8 ``[..., 3]``.
    """
    places = np.linspace(0, max(highest, 1e-9), len(_STOPS))
    channels = [np.interp(values, places, channel) for channel in zip(*_STOPS, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
