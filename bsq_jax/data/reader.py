"""Reads and resizes frames of records from many threads: the frame cache and broken records."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import logging

from bsq_jax.core.errors import UserError
from bsq_jax.data import simd, transforms
from bsq_jax.data.decoding.frame_index import FrameIndex
from bsq_jax.data.decoding.record_frames import Render, first_frame, open_record
from bsq_jax.data.records import BrokenRecord, Record, Source, id_of
from bsq_jax.data.retry import with_retries
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.transforms import Picture

# Which frames of a record are wanted, given how many it has: increasing numbers from 0.
Choose = Callable[[int], Sequence[int]]
Frames = Callable[[Sequence[int]], Iterator[tuple[int, Render]]]

_INDEX_BYTES = 64 * 2**20  # for lists of the frames of videos, besides the frames themselves


class FrameCache:
    """Keeps resized frames in memory up to a budget; nothing is evicted.

    Without eviction an epoch larger than the budget still finds the same part of it every time,
    where a least-recently-used cache would find nothing. Which frames a video has is kept besides,
    up to 64 MiB. Of long and narrow pictures the cache keeps what is resized where it is cut, see
    `bsq_jax.data.transforms.Long`. Safe to use from several threads.
    """

    def __init__(self, megabytes: int):
        """Takes the budget in MiB."""
        self._free = megabytes * 2**20
        self._free_index_bytes = _INDEX_BYTES
        self._frames: dict[tuple[int, int, int], Picture] = {}
        self._frame_indexes: dict[int, FrameIndex | int] = {}
        self._lock = threading.Lock()
        self.full = not megabytes

    def get(self, index: int, number: int, side: int = 0) -> Picture | None:
        """Frame ``number`` of record ``index`` with a short side of ``side`` pixels, or None."""
        return self._frames.get((index, number, side))

    def put(self, index: int, number: int, image: Picture, side: int = 0) -> None:
        """As `get`: keeps it if it is new and the budget allows; ``full`` says if it did not."""
        with self._lock:
            if (index, number, side) in self._frames:
                return
            if image.nbytes > self._free:
                self.full = True
                return
            self._free -= image.nbytes
            self._frames[index, number, side] = image

    def frame_index(self, index: int) -> FrameIndex | int | None:
        """What is known about which frames a record has."""
        return self._frame_indexes.get(index)

    def put_frame_index(self, index: int, frame_index: FrameIndex | int) -> None:
        """Keeps what was found out about which frames a record has."""
        size = 64 if isinstance(frame_index, int) else frame_index.nbytes
        with self._lock:
            if index not in self._frame_indexes and size <= self._free_index_bytes:
                self._free_index_bytes -= size
                self._frame_indexes[index] = frame_index


class Reader:
    """Reads and resizes frames, counts broken records, and stops the run if there are too many."""

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        filter: str,  # noqa: A002
        draft: bool,
        max_broken: float,
        cache: FrameCache,
        shard_count: int = 1,
        backend: str = "pillow",
    ):
        """Takes how frames are resized, and the limits.

        Args:
          source: the records.
          size: short side of the frames, or 0 for the size they have.
          filter: name of the resize filter.
          draft: whether JPEGs may be decoded at reduced size.
          max_broken: fraction of records that may be broken, rounded up to whole records.
          cache: where resized frames are kept, under the index of their record.
          shard_count: number of hosts that read the source. Each host counts broken records
            among those it has read itself: at first its share, in the end all, because each epoch
            is divided anew.
          backend: what decodes JPEGs and resizes, see `bsq_jax.data.simd`.
        """
        self._backend = backend
        self.source = source
        self._size = size
        self._filter = filter
        self._draft = draft
        self._max_broken = max_broken
        self._share = -(-len(source) // shard_count)
        self._met = bytearray(len(source))  # 1 where a record was asked for
        self._met_count = 0
        self._cache = cache
        self._broken: dict[int, str] = {}  # by index, their ids
        self._unreadable: set[int] = set()  # those of which no frame is
        self._passing: set[int] = set()  # those that the storage did not give, maybe for a moment
        self._lock = threading.Lock()

    def broken_ids(self) -> list[str]:
        """Ids of the records found broken so far, sorted."""
        with self._lock:
            return sorted(self._broken.values())

    def read(self, index: int, choose: Choose, size: int | None = None) -> list[Picture] | None:
        """The resized frames of a record that ``choose`` picks, or None if it is broken.

        Args:
          index: of the record.
          choose: which frames.
          size: short side of these frames; None: that of all.

        Raises:
          UserError: it is broken, and so are too many others.
        """
        with self._lock:
            self._met_count += not self._met[index]
            self._met[index] = 1
        side = self._size if size is None else size
        clip = self._cached(index, choose, side)
        if clip is None and index not in self._unreadable:
            clip = self._load(index, choose, side)
        if clip is None:
            # At known ones too: the thread that found the last may be reading ahead of others.
            self._check_broken(index)
        return clip

    def _check_broken(self, index: int) -> None:
        of = max(self._met_count, self._share)
        with self._lock:
            count, one = len(self._broken), self._broken.get(index, f"number {index}")
        if count > self._limit(of):
            raise UserError(
                f"{self.source.name}: {count} of {of} records are broken "
                f"({one} is one); repair them or raise max_broken"
            )

    def _limit(self, count: int) -> int:
        """How many of `count` records may be broken."""
        expected, highest = (self._max_broken * n for n in (count, len(self.source)))
        # A part is a sample: by chance it may hold three standard deviations more than the rest.
        return math.ceil(min(highest, expected + 3 * math.sqrt(expected)) - 1e-9)  # 0.1 * 30 > 3

    def read_or_next(self, index: int, choose: Choose) -> tuple[list[Picture], int]:
        """The frames at ``index``, or of the first readable record after it, and where it was."""
        total = len(self.source)
        for offset in range(total):
            found = (index + offset) % total
            clip = self.read(found, choose)
            if clip is not None:
                return clip, found
        kind = "video" if self.source.videos else "picture"
        raise UserError(f"{self.source.name}: none of {total} records is a {kind} that can be read")

    def _load(self, index: int, choose: Choose, side: int) -> list[Picture] | None:
        record_id, opened = id_of(self.source, index), False

        def load() -> list[Picture]:
            nonlocal record_id, opened
            record = self.source[index]
            record_id = record.id
            known = self._cache.frame_index(index)
            with open_record(
                record,
                draft_side=2 * side if self._draft else 0,
                frame_index=known,
                backend=self._backend,
            ) as found:
                opened = True
                self._cache.put_frame_index(index, found.frame_index)
                return self._read(index, found.frames, choose(len(found)), side)

        try:
            clip = with_retries(load)
        except BrokenRecord as error:
            self._note_broken(index, record_id, str(error))
            # Other frames of a damaged video may be readable, and must be read whatever was asked
            # for before: what a clip holds is a function of its position alone.
            if not opened or not self.source.videos:
                self._unreadable.add(index)
            return None
        except OSError as error:  # the storage may be back when the record is due again
            self._note_broken(index, record_id, str(error), passing=True)
            return None
        self._note_readable(index)
        return clip

    def _cached(self, index: int, choose: Choose, side: int) -> list[Picture] | None:
        frame_index = self._cache.frame_index(index)
        if frame_index is None:
            return None
        count = frame_index if isinstance(frame_index, int) else len(frame_index.times)
        found = [self._cache.get(index, number, side) for number in choose(count)]
        clip = [image for image in found if image is not None]
        return clip if len(clip) == len(found) and _of_one_size(clip) else None

    def _read(self, index: int, frames: Frames, numbers: Sequence[int], side: int) -> list[Picture]:
        """Renders the wanted frames; those on the way as well, while the cache can keep them."""
        wanted = set(numbers)
        clip: list[Picture] = []
        for number, render in frames(numbers):
            if number not in wanted and self._cache.full:
                continue
            image = self._cache.get(index, number, side)
            if image is None:
                try:
                    image = transforms.resize_to_cut(render(), side, self._filter, self._backend)
                except BrokenRecord:
                    if number in wanted:
                        raise
                    continue
                self._cache.put(index, number, image, side)
            if number in wanted:
                clip.append(image)
        if not _of_one_size(clip):
            raise BrokenRecord("its frames are not of one size")
        return clip

    def reject(self, index: int, reason: str) -> None:
        """Counts a record that was read as broken, because of what is in it.

        Raises:
          UserError: too many others are broken, too.
        """
        self._note_broken(index, self.source[index].id, reason)
        self._check_broken(index)

    def _note_broken(
        self, index: int, record_id: str, reason: str, *, passing: bool = False
    ) -> None:
        with self._lock:
            if not passing:
                self._passing.discard(index)
            if index in self._broken:  # two threads may find out at the same time
                return
            self._broken[index] = record_id
            if passing:
                self._passing.add(index)
        logging.warning("Skipping broken record %s: %s", record_id, reason)

    def _note_readable(self, index: int) -> None:
        with self._lock:
            if index in self._passing:
                self._passing.remove(index)
                self._broken.pop(index, None)


def _of_one_size(clip: Sequence[Picture]) -> bool:
    return len({image.shape for image in clip}) == 1


def training_reader(config: DataConfig, source: Source, shard_count: int) -> Reader:
    """The reader of a source for training, on one of so many hosts."""
    if config.backend == "simd":
        simd.check(config.filter)
    return Reader(
        source,
        size=config.resize,
        filter=config.filter,
        draft=True,
        max_broken=config.max_broken,
        cache=FrameCache(config.cache_mb),
        shard_count=shard_count,
        backend=config.backend,
    )


def load_resized(record: Record, size: int, filter: str, *, draft: bool) -> Picture:  # noqa: A002
    """Decodes a picture, or the first frame of a video, and resizes its short side to ``size``.

    Args:
      record: what the source holds.
      size: short side of the result in pixels; 0 keeps the size it has.
      filter: name of the resize filter.
      draft: whether a JPEG may be decoded at reduced size, never below twice ``size``.

    Returns:
      What `transforms.center_crop` and the other crops cut: uint8 [height, width, 3], or a `Long`.

    Raises:
      BrokenRecord: the record cannot be read.
      OSError: its file cannot be read.
    """
    image = first_frame(record, draft_side=2 * size if draft else 0)
    return transforms.resize_to_cut(image, size, filter)
