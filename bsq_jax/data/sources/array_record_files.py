"""Data in array_record files, whose records are encoded pictures or video files."""

import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.record_frames import is_video, size_of
from bsq_jax.data.records import BrokenRecord, Record, Source
from bsq_jax.data.sources.folders import VAL_FRACTION

_PROBED = 8  # records read at most to find out whether they are videos


class ArrayRecordSource:
    """Encoded files in array_record files: each record is the bytes of one picture or video."""

    def __init__(self, name: str, records: Sequence[bytes], positions: np.ndarray):
        """Takes open ``records`` and which ``positions`` of them belong to this source.

        Whether they are videos is what the first readable one says.
        """
        self.name = name
        self._records = records
        self._positions = positions
        self.videos = self._hold_videos()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        position = int(self._positions[index])
        return Record(f"{self.name}#{position}", read_record(self._records, position))

    def _hold_videos(self) -> bool:
        for index in range(min(len(self), _PROBED)):
            try:
                record = self[index]
                if is_video(record):
                    return True
                size_of(record)
            except (BrokenRecord, OSError):
                continue
            return False
        return False


def read_record(records: Sequence[Any], position: int) -> Any:
    """One record; whatever the libraries report on its bytes makes it a broken one.

    array_record reports damage in ways of its own, and the parser of examples in others.
    """
    try:
        return records[position]
    except OSError:
        raise
    except Exception as error:
        raise BrokenRecord(str(error).partition("\n")[0] or type(error).__name__) from error


def open_array_record(place: str, split: str, divide: bool) -> Source:
    """Records of array_record files; see `bsq_jax.data.sources.make_source`."""
    try:
        from array_record.python import array_record_data_source
    except ImportError as error:
        raise UserError(
            f"array_record:{place} needs 'pip install array_record' ({error})"
        ) from error

    globs = place.split("|")
    if len(globs) > 2:
        raise UserError(f"array_record:{place} has {len(globs)} globs: give one, or TRAIN|VAL")
    pattern = globs[-1] if split == "val" else globs[0]
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
        raise UserError(f"array_record:{pattern} matches no file: check the glob")
    try:
        records = array_record_data_source.ArrayRecordDataSource(paths)
        total = len(records)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"array_record:{pattern}: not array_record files ({reason})") from error
    positions = np.arange(total)
    if len(globs) == 1 and divide:
        positions = positions[(positions % round(1 / VAL_FRACTION) == 0) == (split == "val")]
    if not positions.size:
        raise UserError(f"array_record:{pattern} has no records for {split} ({total} in all)")
    return ArrayRecordSource(f"array_record:{pattern}", records, positions)
