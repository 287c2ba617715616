"""A source of drawn pictures."""

import numpy as np

from bsq_jax.data.records import SPLITS, Record


class Disks:
    """Pictures of three colored disks, the same for a number whenever it is asked for.

    Args:
      split: "train" or "val"; no picture is in both.
      count: pictures of a split.
      side: height and width in pixels.
    """

    videos = False

    def __init__(self, split, count=1000, side=64):
        self.name = f"disks/{split}"
        self._split, self._count, self._side = SPLITS.index(split), count, side

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        random = np.random.default_rng([self._split, index])
        pixels = np.full((self._side, self._side, 3), random.integers(256, size=3), np.uint8)
        row, column = np.mgrid[: self._side, : self._side] / self._side
        for _ in range(3):
            y, x, radius = random.uniform((0, 0, 0.1), (1, 1, 0.4))
            inside = (row - y) ** 2 + (column - x) ** 2 < radius**2
            pixels[inside] = random.integers(256, size=3)
        return Record(f"{self.name}/{index}", pixels)
