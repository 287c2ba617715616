"""The sizes of pictures that the study of resolutions evaluates."""

from __future__ import annotations

import dataclasses
import math

FACTORS = (0.5, 1.0, 1.5, 2.0)  # of the side of a square
ASPECTS = ((1, 1), (4, 3), (16, 9), (1, 2))  # width to height, at the square's number of pixels


@dataclasses.dataclass(frozen=True)
class Shape:
    """A size of pictures.

    Attributes:
      size: (height, width) in pixels.
      factors: of `FACTORS`, those that it is of the trained square.
      aspects: of `ASPECTS`, those that it has at the trained square's number of pixels.
    """

    size: tuple[int, int]
    factors: tuple[float, ...] = ()
    aspects: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """HEIGHTxWIDTH."""
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def title(self) -> str:
        """Of its column: the size, and what it is of the trained square."""
        ratios = [f"{width}:{height}" for width, height in self.aspects if width != height]
        factors = [f"{factor:g}x" for factor in self.factors]
        return f"{self.name} ({', '.join([*factors, *ratios])})"


def shapes(side: int, patch: tuple[int, int]) -> list[Shape]:
    """All sizes of the evaluation, rounded to whole patches, half up, at least one.

    An aspect ratio of w to h has the height ``side * sqrt(h / w)`` and the width ``side * sqrt(w /
    h)``, so that it has the pixels of the square up to the rounding.

    Args:
      side: of the square that a model is trained at, in pixels.
      patch: (height, width) of a patch in pixels.

    Returns:
      The factors' sizes, then those of the aspect ratios; of several that the rounding makes equal,
      one.
    """

    def rounded(height: float, width: float) -> tuple[int, int]:
        counts = (
            max(math.floor(n / own + 0.5), 1) for n, own in zip((height, width), patch, strict=True)
        )
        rows, columns = counts
        return rows * patch[0], columns * patch[1]

    found: dict[tuple[int, int], Shape] = {}
    for factor in FACTORS:
        size = rounded(side * factor, side * factor)
        shape = found.get(size, Shape(size))
        found[size] = dataclasses.replace(shape, factors=(*shape.factors, factor))
    for aspect in ASPECTS:
        stretch = math.sqrt(aspect[0] / aspect[1])
        size = rounded(side / stretch, side * stretch)
        shape = found.get(size, Shape(size))
        found[size] = dataclasses.replace(shape, aspects=(*shape.aspects, aspect))
    return list(found.values())
