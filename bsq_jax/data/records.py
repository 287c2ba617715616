"""What a source holds: records of pictures or videos, still encoded where they can be."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SPLITS = ("train", "val")

NO_LABEL = -1  # of a record whose class is not known

# One picture: the bytes of an encoded file, or pixels uint8 [height, width, 3], 0..255.
Still = bytes | np.ndarray


class BrokenRecord(Exception):  # noqa: N818  # a condition to handle, named for what it is
    """The bytes of a record are not a picture or video that can be read."""


class Record(NamedTuple):
    """One picture or video as its source holds it.

    Attributes:
      id: a name that a person can find it by: a path, or a dataset and a number.
      content: an encoded picture or video file as bytes; the path of a video file, which is then
        read only where frames are wanted; pixels uint8 [height, width, 3], 0..255; or a sequence of
        frames, each an encoded picture or pixels, that are made when they are asked for.
    """

    id: str
    content: Still | pathlib.Path | Sequence[Still]


class Source(Protocol):
    """Random access to a fixed sequence of records; reading from several threads is safe.

    Attributes:
      name: how the source calls itself in messages.
      videos: whether the records are videos. A batch from such a source has the frames that the
        settings ask for, one from any other source has one.
    """

    name: str
    videos: bool

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at ``index``.

        Raises:
          BrokenRecord: what is stored there is damaged.
          OSError: its bytes cannot be read.
        """
        ...


@runtime_checkable
class Labelled(Protocol):
    """A source that may know classes.

    Attributes:
      classes: names of the classes in the order of their numbers; empty if it knows none.
    """

    classes: tuple[str, ...]

    def label(self, index: int) -> int:
        """Number of the class of the record at ``index``, or `NO_LABEL`."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A source that reads records in groups, such as the row groups of Parquet files.

    Attributes:
      groups_at_once: how many groups may be in use at a time, so that they fit into memory.
    """

    groups_at_once: int

    def groups(self) -> np.ndarray:
        """Number of the group of each record, int64 ``[record]``."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A source that can name a record without reading it."""

    def id(self, index: int) -> str:
        """The id of the record at ``index``."""
        ...


def id_of(source: Source, index: int) -> str:
    """The id of a record where the source knows it without reading, else its place there."""
    if isinstance(source, Identified) and callable(source.id):
        return source.id(index)
    return f"{source.name}#{index}"


@runtime_checkable
class PartlyRead(Protocol):
    """A source that can read the beginning of a record without the rest of it."""

    def beginning(self, index: int, most: int) -> Record:
        """The record at ``index``, of an encoded picture the first ``most`` bytes alone.

        Raises:
          OSError: its bytes cannot be read.
        """
        ...


def classes_of(source: Source) -> tuple[str, ...]:
    """Names of the classes that the records of a source have; empty where there are none."""
    return source.classes if isinstance(source, Labelled) else ()


def label_of(source: Source, index: int) -> int:
    """Number of the class of the record at ``index``, or `NO_LABEL`."""
    return source.label(index) if isinstance(source, Labelled) else NO_LABEL


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that can say which records it has without reading them."""

    def fingerprint(self) -> str:
        """A text that differs where the ids of the records, their order or classes differ."""
        ...


def fingerprint_of(source: Source) -> str:
    """A short text that is the same wherever a source has the same records in the same order.

    It goes over the number of records and the names of classes, and over the ids where the source
    knows them without reading the records; never over what is in them.
    """
    known = source.fingerprint() if isinstance(source, Fingerprinted) else ""
    text = repr((len(source), classes_of(source), known))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
