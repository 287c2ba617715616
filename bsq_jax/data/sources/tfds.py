"""Datasets that tensorflow-datasets has prepared as array_record files."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from bsq_jax.core.errors import UserError
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Record, Source
from bsq_jax.data.sources.array_record_files import read_record


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
        """See `bsq_jax.data.records.Labelled`."""
        return self._label(index) if self.classes else NO_LABEL

    def _read_label(self, index: int) -> int:
        try:
            return int(read_record(self._data_source, index)[self._label_feature])
        except (BrokenRecord, OSError):  # evaluation asks for the class of a broken record too
            return NO_LABEL

    def __len__(self) -> int:
        return len(self._data_source)

    def __getitem__(self, index: int) -> Record:
        stored = read_record(self._data_source, index)[self._feature]
        return Record(f"{self.name}#{index}", list(stored) if self.videos else stored)


class _Features(NamedTuple):
    """Which features of a dataset are read.

    Attributes:
      stored: names of all pictures and videos, which are handed out undecoded.
      shown: name of the one that is read.
      videos: whether that is a video.
      label: name of the class label; empty if there is none.
      classes: names of its classes.
    """

    stored: tuple[str, ...]
    shown: str
    videos: bool
    label: str
    classes: tuple[str, ...]


def open_tfds(place: str, split: str, divide: bool) -> Source:
    """A prepared TensorFlow dataset; see `bsq_jax.data.sources.make_source`."""
    del divide  # a prepared dataset always has splits of its own
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{place} needs 'pip install tensorflow-datasets' ({error})"
        ) from error

    name, _, data_dir = place.partition("@")
    builder = _builder(tfds, place, name, os.path.expanduser(data_dir) or None)
    chosen = _split(place, split, builder.info.splits)
    features = _features(tfds, place, builder.info.features)

    class Stored(tfds.decode.SkipDecoding):
        """Leaves the bytes as they are stored; the pipeline's threads decode them."""

        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

    try:
        data_source = builder.as_data_source(
            split=chosen, decoders={name: Stored() for name in features.stored}
        )
    except NotImplementedError as error:  # prepared in a format without random access
        raise UserError(
            f"tfds:{place} is stored as {builder.info.file_format}: prepare it in another folder "
            "with file_format='array_record' and give that as tfds:NAME@DATA_DIR"
        ) from error
    return TfdsSource(
        f"tfds:{name}/{chosen}",
        data_source,
        features.shown,
        videos=features.videos,
        label=features.label,
        classes=features.classes,
    )


def _builder(tfds: Any, place: str, name: str, folder: str | None) -> Any:
    """The builder of a dataset that is known and prepared."""
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        splits, _ = builder.info.splits, builder.info.features
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
    return builder


def _split(place: str, split: str, splits: Any) -> str:
    """The name that a dataset has for 'train' or 'val'."""
    names = ["train"] if split == "train" else ["validation", "test"]
    chosen = next((n for n in names if n in splits), None)
    if chosen is None:
        raise UserError(
            f"tfds:{place} has no split {' or '.join(map(repr, names))} "
            f"(it has: {', '.join(splits)}); give another source for {split}"
        )
    return chosen


def _features(tfds: Any, place: str, features: Any) -> _Features:
    """Chooses the picture or video, and the label, among the features of a dataset."""
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
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else next(iter(labels), "")
    classes = tuple(features[label].names) if label else ()
    return _Features((*pictures, *videos), feature, not pictures, label, classes)
