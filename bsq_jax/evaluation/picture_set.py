"""Pictures of one size in a file or a folder, as commands and other suites write samples."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.record_frames import first_frame
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS, report_unread, search


class PictureSet:
    """Pictures of one size in an .npz file or a folder.

    Attributes:
      size: (height, width).
    """

    def __init__(self, place: str | pathlib.Path):
        """Opens them.

        Raises:
          UserError: there are none, or they are no pictures.
        """
        self._place = path = pathlib.Path(place).expanduser()
        self._array: np.ndarray | None = None
        self._files: list[pathlib.Path] = []
        if path.is_dir():
            names, unread = search(path, IMAGE_EXTENSIONS)
            self._files = [path / name for name in names if name != "grid.png"]
            if not self._files:
                hint = f"it holds {unread}" if unread else "check the path"
                raise UserError(f"{path} holds no pictures: {hint}")
            report_unread(str(path), unread)
            self.size: tuple[int, int] = self._read(self._files[0]).shape[:2]
            return
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                self._array = arrays["arr_0"]
        except Exception as error:  # of the archive, zlib, the header, a size beyond memory
            raise UserError(
                f"{path} is no .npz file with pictures as arr_0, and no folder ({error})"
            ) from None
        array = self._array
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
            raise UserError(
                f"arr_0 of {path} is {array.dtype} {list(array.shape)}: it must be uint8 "
                "[N, height, width, 3]"
            )
        self.size = array.shape[1], array.shape[2]

    def __len__(self) -> int:
        return len(self._files) if self._array is None else len(self._array)

    def batches(self, count: int) -> Iterator[np.ndarray]:
        """All pictures, uint8 ``[batch, height, width, 3]``, `count` at a time.

        Raises:
          UserError: one cannot be read, or is of another size.
        """
        for first in range(0, len(self), count):
            if self._array is not None:
                yield self._array[first : first + count]
                continue
            images = [self._read(file) for file in self._files[first : first + count]]
            for file, image in zip(self._files[first:], images, strict=False):
                if image.shape[:2] != self.size:
                    raise UserError(
                        f"{file} is {image.shape[0]}x{image.shape[1]}, the first picture is "
                        f"{self.size[0]}x{self.size[1]}: all must be of one size"
                    )
            yield np.stack(images)

    def _read(self, file: pathlib.Path) -> np.ndarray:
        try:
            return first_frame(Record(str(file), file.read_bytes()))
        except BrokenRecord as error:
            raise UserError(f"{file} is no picture that can be read: {error}") from None
