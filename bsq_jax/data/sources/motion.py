"""Videos made from photographs: a camera that pans, zooms and turns over each of them.

A frame is computed when it is asked for, from its number alone. Positions are real numbers and
pixels are interpolated, so that motion is as smooth as that of a camera.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

from bsq_jax.data.decoding.record_frames import first_frame
from bsq_jax.data.records import SPLITS, Record, Source
from bsq_jax.data.transforms import resize_short_side

FRAMES = 96  # of each video
SIZE = (144, 192)  # height and width of a frame
PATHS = {"train": 16, "val": 8}  # videos of each photograph

# The short side of a photograph, so that a frame at full width can be turned by any angle: its
# diagonal is 240. The rest, and what zooming in leaves, is room to pan.
_SIDE = 288
_ZOOM = (0.55, 1.0)  # pixels of the photograph to one of the frame: never reduced, so no aliasing
_PERIOD = (80, 500)  # of a swing to and fro, in frames
_STILL = 1 / 3  # share of videos in which one kind of motion is absent
_SPIN = 0.15  # share of turning videos that go round instead of to and fro


class View(NamedTuple):
    """Where the camera is.

    Attributes:
      x: middle of the frame in the photograph, from the left, in pixels.
      y: the same from the top.
      zoom: pixels of the photograph to one pixel of the frame.
      angle: how far the camera is turned, in radians.
    """

    x: float
    y: float
    zoom: float
    angle: float


class _Swing(NamedTuple):
    """A value that swings about a middle one, as a sine of the frame's number."""

    middle: float
    reach: float
    period: float
    phase: float

    def at(self, time: float) -> float:
        return self.middle + self.reach * math.sin(2 * math.pi * (time / self.period + self.phase))


class CameraPath:
    """A smooth path over a photograph; a function of its seed."""

    def __init__(self, height: int, width: int, seed: Sequence[int]):
        """Takes the photograph's height and width, and numbers that make the path its own."""
        rng = np.random.default_rng(seed)
        self._height, self._width = height, width
        moves = rng.random(3) >= _STILL  # pan, zoom, turn
        if not moves.any():
            moves[rng.integers(3)] = True
        low, high = np.log(_ZOOM)
        self._zoom = _swing(rng, float(low), float(high), moves=moves[1])
        self._turn = _swing(rng, -0.3, 0.3, moves=moves[2])
        speed = rng.choice([-1, 1]) * rng.uniform(0.2, 1.0) * 2 * math.pi / 360
        self._spin = float(speed) if moves[2] and rng.random() < _SPIN else 0.0
        self._pan = [_swing(rng, -1.0, 1.0, moves=moves[0]) for _ in range(2)]

    def view(self, time: float) -> View:
        """Where the camera is at a frame's number; what it sees lies within the photograph."""
        zoom = math.exp(self._zoom.at(time))
        angle = self._turn.at(time) + self._spin * time
        sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
        half_y, half_x = SIZE[0] * zoom / 2, SIZE[1] * zoom / 2
        # What the turned frame leaves free on either side is what panning may use.
        room_x = self._width / 2 - (half_x * cosine + half_y * sine)
        room_y = self._height / 2 - (half_x * sine + half_y * cosine)
        across, down = (swing.at(time) for swing in self._pan)
        return View(
            self._width / 2 + across * room_x, self._height / 2 + down * room_y, zoom, angle
        )


def _swing(rng: np.random.Generator, low: float, high: float, *, moves: bool) -> _Swing:
    """A swing that stays within [low, high]; one that does not move rests somewhere in it."""
    ends = np.sort(rng.uniform(low, high, 2))
    period = math.exp(rng.uniform(*np.log(_PERIOD)))
    phase = rng.random()
    reach = (ends[1] - ends[0]) / 2 if moves else 0.0
    return _Swing(float(ends.mean()), float(reach), period, phase)


def render(
    photograph: Sequence[Image.Image], view: View, size: tuple[int, int] = SIZE
) -> np.ndarray:
    """What the camera sees, interpolated bicubically.

    Args:
      photograph: what `channels_of` gives.
      view: where the camera is.
      size: (height, width) of the result.

    Returns:
      uint8 [height, width, 3].
    """
    across, along = (view.zoom * f(view.angle) for f in (math.cos, math.sin))
    half_y, half_x = size[0] / 2, size[1] / 2
    # Pillow asks where in the photograph a point of the frame is: (a x + b y + c, d x + e y + f).
    a, b, d, e = across, -along, along, across
    c, f = view.x - a * half_x - b * half_y, view.y - d * half_x - e * half_y
    channels = [
        np.asarray(
            channel.transform(
                (size[1], size[0]),
                Image.Transform.AFFINE,
                (a, b, c, d, e, f),
                resample=Image.Resampling.BICUBIC,
            )
        )
        for channel in photograph
    ]
    return np.clip(np.rint(np.dstack(channels)), 0, 255).astype(np.uint8)


def channels_of(photograph: np.ndarray) -> list[Image.Image]:
    """The channels of a picture uint8 [height, width, 3] one by one, as floats.

    Pillow interpolates bytes too, and in the same time, but cuts the fractions off.
    """
    return [Image.fromarray(photograph[..., channel].astype(np.float32)) for channel in range(3)]


class MotionVideo(Sequence[np.ndarray]):
    """The frames along a path over a photograph, uint8 [144, 192, 3] each."""

    def __init__(self, photograph: Sequence[Image.Image], path: CameraPath):
        """Takes what `channels_of` gives, and the path."""
        self._photograph = photograph
        self._path = path

    def __len__(self) -> int:
        return FRAMES

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        """The frame ``number``, or the frames of a slice."""
        if isinstance(number, slice):
            return [self[n] for n in range(FRAMES)[number]]
        return render(self._photograph, self._path.view(range(FRAMES)[number]))


class MotionSource:
    """Videos of 96 frames over photographs; neighbours in the order show different ones."""

    def __init__(self, photographs: Source, split: str):
        """Takes pictures, which must be readable, and 'train' or 'val'."""
        self.name = f"motion/{split}"
        self.videos = True
        self._photographs = photographs
        self._split = split
        # Read once and kept: some megabytes.
        self._photograph = functools.lru_cache(maxsize=None)(self._read)

    def __len__(self) -> int:
        return len(self._photographs) * PATHS[self._split]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index {index} is not one")
        number, which = divmod(index, len(self._photographs))
        record_id, photograph = self._photograph(which)
        seed = (SPLITS.index(self._split), which, number)
        width, height = photograph[0].size
        path = CameraPath(height, width, seed)
        return Record(f"{record_id}#{number}", MotionVideo(photograph, path))

    def _read(self, which: int) -> tuple[str, list[Image.Image]]:
        record = self._photographs[which]
        return record.id, channels_of(resize_short_side(first_frame(record), _SIDE))
