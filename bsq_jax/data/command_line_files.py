"""Pictures and videos named on a command line, as files or folders of files.

Folders are those of the usual test sets as they are unpacked: Kodak (``kodim01.png`` to
``kodim24.png``), and UVG or MCL-JCV as raw ``.yuv`` files, MP4, Y4M or Matroska.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.data.decoding.record_frames import open_record
from bsq_jax.data.decoding.stills import image_size
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS, Video
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS, report_unread, search
from bsq_jax.data.transforms import MOST_PIXELS, resize, resized_shape
from bsq_jax.media.timing import mean_rate

_EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS


@dataclasses.dataclass(frozen=True)
class Input:
    """One picture or video.

    Attributes:
      name: of the file; of one in a folder, its path below it.
      path: of the file.
      video: whether it is a video.
    """

    name: str
    path: pathlib.Path
    video: bool

    def shape(self, size: int = 0) -> tuple[int, int]:
        """(height, width) of the frames that `read` gives.

        Raises:
          UserError: it is no picture or video that can be read.
        """
        try:
            if not self.video:
                height, width = image_size(self.path.read_bytes())
            else:
                with Video(self.path) as video:
                    height, width, _ = next(video.frames([0]))[1]().shape
        except (BrokenRecord, OSError) as error:
            raise self._problem(error) from error
        return self._resized_shape(height, width, size)

    def read(self, frames: int = 0, size: int = 0) -> tuple[np.ndarray, Fraction | None]:
        """Reads it into memory.

        Args:
          frames: how many frames of a video, from its first, if it has as many; 0: all.
          size: short side in pixels to which frames are resized; 0: they stay as they are.

        Returns:
          uint8 ``[time, height, width, 3]`` and frames a second, on average where they vary; None
          if that is not known. Of an animated picture the first frame.

        Raises:
          UserError: it is no picture or video that can be read.
        """
        rate, made = None, []
        try:
            record = Record(self.name, self.path if self.video else self.path.read_bytes())
            with open_record(record) as opened:
                count = min(frames, len(opened)) if frames else len(opened)
                if isinstance(opened, Video) and opened.rate is not None:
                    rate = mean_rate(opened.timing(count))
                for _, render in opened.frames(range(count)):
                    picture = render()
                    height, width, _ = picture.shape
                    made.append(resize(picture, *self._resized_shape(height, width, size)))
        except (BrokenRecord, OSError) as error:
            raise self._problem(error) from error
        if len({picture.shape for picture in made}) > 1:
            raise UserError(
                f"{self.name} has frames of several sizes: cut it where the size changes"
            )
        return np.stack(made), rate

    def _resized_shape(self, height: int, width: int, size: int) -> tuple[int, int]:
        shape = resized_shape(height, width, size) if size else (height, width)
        if shape[0] * shape[1] > max(MOST_PIXELS, height * width):
            raise UserError(
                f"{self.name} has {height}x{width} pixels, and with a short side of {size} it "
                f"would have {shape[0]}x{shape[1]}: cut it, or measure it without resizing"
            )
        return shape

    def _problem(self, error: Exception) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else error
        kind = "video" if self.video else "picture"
        return UserError(f"{self.name} is no {kind} that can be read: {reason}")


def find_inputs(places: Sequence[str]) -> list[Input]:
    """All pictures or all videos that are named.

    Args:
      places: files, and folders that are searched to any depth.

    Raises:
      UserError: a place does not exist or holds neither, a file is neither by its name, or there
        are both pictures and videos.
    """
    found: list[Input] = []
    for place in places:
        root = local_path(place).expanduser()
        if root.is_dir():
            names, unread = search(root, _EXTENSIONS)
            if not names:
                hint = f"it holds {unread}" if unread else "check the path"
                raise UserError(f"{place} holds no pictures or videos: {hint}")
            report_unread(place, unread)
            found += [_input(name, root / name) for name in names]
        elif root.is_file():
            if root.suffix.lower() not in _EXTENSIONS:
                raise UserError(
                    f"{place} is no picture or video by its name (known endings: "
                    f"{' '.join(sorted(_EXTENSIONS))})"
                )
            found.append(_input(root.name, root))
        else:
            raise UserError(f"{place} does not exist: check the path")
    if len({one.video for one in found}) > 1:
        picture = next(one.name for one in found if not one.video)
        video = next(one.name for one in found if one.video)
        raise UserError(
            f"{picture} is a picture and {video} is a video, and there is no mean over both: "
            "measure them in two runs"
        )
    found = list({one.path.resolve(): one for one in found}.values())  # each file once
    names = distinct([one.name for one in found])
    return [dataclasses.replace(one, name=name) for one, name in zip(found, names, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that were there before: ``a.png``, ``a.png (2)``."""
    made: dict[str, None] = {}  # in order
    last: dict[str, int] = {}  # number given to each name; the lower ones stay taken
    for name in names:
        number = last.get(name, 1)
        new = name
        while new in made:
            number += 1
            new = f"{name} ({number})"
        last[name] = number
        made[new] = None
    return list(made)


def _input(name: str, path: pathlib.Path) -> Input:
    return Input(name, path, path.suffix.lower() in VIDEO_EXTENSIONS)
