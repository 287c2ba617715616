"""Prepared data sets: array_record files, and what tensorflow-datasets makes of them."""

import functools
import glob
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.record_frames import is_video, size_of
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Record, Source
from bsq_jax.data.sources.folders import VAL_FRACTION

_LOOKED_AT = 8  # records, to find out what a file holds


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
        return Record(f"{self.name}#{position}", _read(self._records, position))

    def _hold_videos(self) -> bool:
        for index in range(min(len(self), _LOOKED_AT)):
            try:
                record = self[index]
                if is_video(record):
                    return True
                size_of(record)
            except (BrokenRecord, OSError):
                continue
            return False
        return False


class TfdsSource:
    """One split of a prepared TensorFlow dataset; pictures and frames are the stored bytes."""

    def __init__(
        self,
        name: str,
        data_source: Sequence[dict[str, Any]],
        feature: str,
        *,
        videos: bool,
        label: str = "",
        classes: Sequence[str] = (),
    ):
        """Takes the split's examples, which feature of them to read, and which is the label."""
        self.name = name
        self.videos = videos
        self.classes = tuple(classes)
        self._data_source = data_source
        self._feature = feature
        self._label_feature = label
        self._label = functools.lru_cache(maxsize=2**22)(self._read_label)

    def label(self, index: int) -> int:
        """See :class:`bsq_jax.data.records.Labelled`."""
        return self._label(index) if self.classes else NO_LABEL

    def _read_label(self, index: int) -> int:
        try:
            return int(_read(self._data_source, index)[self._label_feature])
        except (BrokenRecord, OSError):  # evaluation asks for the class of a broken record too
            return NO_LABEL

    def __len__(self) -> int:
        return len(self._data_source)

    def __getitem__(self, index: int) -> Record:
        stored = _read(self._data_source, index)[self._feature]
        return Record(f"{self.name}#{index}", list(stored) if self.videos else stored)


def _read(records: Sequence[Any], position: int) -> Any:
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
    """Records of array_record files; see :func:`bsq_jax.data.sources.make_source`."""
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


def open_tfds(place: str, split: str, divide: bool) -> Source:
    """A prepared TensorFlow dataset; see :func:`bsq_jax.data.sources.make_source`."""
    del divide  # a prepared dataset always has splits of its own
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{place} needs 'pip install tensorflow-datasets' ({error})"
        ) from error

    name, _, data_dir = place.partition("@")
    folder = os.path.expanduser(data_dir) or None
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        splits, features = builder.info.splits, builder.info.features
    except ImportError as error:  # such as of features.Video, which TensorFlow has to describe
        raise UserError(
            f"tfds:{place} cannot be opened without {error.name or error}: install it, or give the "
            "files themselves with clips:PATH (videos) or folder:PATH (pictures)"
        ) from error
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        hint = (
            ""
            if importlib.util.find_spec("tensorflow")
            else "; its video sets need TensorFlow: install it, or give the files with clips:PATH"
        )
        raise UserError(
            f"tfds:{place} is unknown to tensorflow-datasets ({reason}){hint}"
        ) from error
    if not splits:
        where = f", data_dir={folder!r}" if folder else ""
        raise UserError(
            f"tfds:{place} is not prepared in {builder.data_path}; prepare it once with: python -c "
            f'"import tensorflow_datasets as tfds; tfds.builder({name!r}{where}, '
            "file_format='array_record').download_and_prepare()\""
        )
    names = ["train"] if split == "train" else ["validation", "test"]
    chosen = next((n for n in names if n in splits), None)
    if chosen is None:
        raise UserError(
            f"tfds:{place} has no split {' or '.join(map(repr, names))} "
            f"(it has: {', '.join(splits)}); give another source for {split}"
        )
    pictures = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    # features.Video is a sequence of pictures, too.
    videos = [
        k
        for k, f in features.items()
        if isinstance(f, tfds.features.Sequence) and isinstance(f.feature, tfds.features.Image)
    ]
    if not pictures and not videos:
        raise UserError(
            f"tfds:{place} has no picture or video among its features ({', '.join(features)})"
        )
    known, usual = (pictures, "image") if pictures else (videos, "video")
    feature = usual if usual in known else known[0]

    class Stored(tfds.decode.SkipDecoding):
        """The bytes stay as they are stored; the pipeline's threads decode them."""

        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

    decoders = {name: Stored() for name in pictures + videos}
    try:
        data_source = builder.as_data_source(split=chosen, decoders=decoders)
    except NotImplementedError as error:  # prepared in a format without random access
        raise UserError(
            f"tfds:{place} is stored as {builder.info.file_format}: prepare it in another folder "
            "with file_format='array_record' and give that as tfds:NAME@DATA_DIR"
        ) from error
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else next(iter(labels), "")
    classes = features[label].names if label else ()
    return TfdsSource(
        f"tfds:{name}/{chosen}",
        data_source,
        feature,
        videos=not pictures,
        label=label,
        classes=classes,
    )
