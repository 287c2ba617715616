"""Damaged files through the training reader. Run ``python -m benchmarks.fuzz_reader``.

Small pictures and clips of each kind are written and then damaged at random: bytes changed, cut
off, left out, doubled and swapped, runs of zeros and ones, extreme numbers in headers. Each is read
as training reads it: a clip that begins anywhere, resized and cropped. Either it can be read or it
is a broken record with a reason; whatever else is raised has escaped and would end a run. Reading
happens in processes of its own, so that one that crashes or does not come back is counted and
named. The exit status is 1 where a file escaped, crashed or hung. ``--seed`` and the number of a
file make it again: ``--show mkv 17`` writes it to standard output.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import logging as python_logging
import multiprocessing
import os
import pathlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import av
import numpy as np
from absl import logging
from PIL import Image

from bsq_jax.data import clip_lengths, transforms
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import Record

_MEMORY = 6 * 2**30  # bytes of address space of a process that reads
_SIZE = (48, 64)

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "jpeg progressive": ("JPEG", {"progressive": True, "subsampling": 2}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("TIFF", {"compression": "jpeg"}),
    "bmp": ("BMP", {}),
    "jp2": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
    "ppm": ("PPM", {}),
}
CLIPS = {
    "mp4": "libx264",
    "mov": "libx265",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "flv": "flv1",
    "ts": "libx264",
    "mpg": "mpeg2video",
    "ogv": "libvpx",
    "wmv": "wmv2",
    "3gp": "mpeg4",
    "y4m": "wrapped_avframe",
    "mkv ffv1": "ffv1",
    "mkv av1": "libsvtav1",
    "avi mjpeg": "mjpeg",
}
_MUXERS = {
    "mkv": "matroska",
    "ts": "mpegts",
    "mpg": "mpeg",
    "ogv": "ogg",
    "wmv": "asf",
    "y4m": "yuv4mpegpipe",
}


class Found(NamedTuple):
    """What became of one damaged file.

    Attributes:
      outcome: 'read', 'broken', 'escaped', 'crashed' or 'hung'.
      reason: what was said of it.
    """

    outcome: str
    reason: str


def whole_picture(kind: str) -> bytes:
    """A picture of this kind, 48 x 64 pixels."""
    rows, columns = np.mgrid[0 : _SIZE[0], 0 : _SIZE[1]]
    pixels = np.stack([4 * rows, 3 * columns, (rows * columns) % 251], -1).astype(np.uint8)
    image, stream = Image.fromarray(pixels), io.BytesIO()
    name, options = PICTURES[kind]
    if name == "GIF":
        options = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    if kind == "jpeg":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {**options, "exif": exif}
    image.save(stream, name, **options)
    return stream.getvalue()


def whole_clip(kind: str, frames: int = 12) -> bytes:
    """A video of this kind, 48 x 64 pixels."""
    stream, ending, codec = io.BytesIO(), kind.split()[0], CLIPS[kind]
    with av.open(stream, "w", format=_MUXERS.get(ending, ending)) as c:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        video: Any = c.add_stream(codec, rate=25, options=options)
        video.height, video.width = _SIZE
        video.pix_fmt = layout = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.gop_size = 4
        video.codec_context.time_base = Fraction(1, 25)
        for number in range(frames):
            rows, columns = np.mgrid[0 : _SIZE[0], 0 : _SIZE[1]]
            pixels = np.stack([4 * rows, 3 * columns + 5 * number, rows + columns], -1)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            c.mux(video.encode(frame.reformat(format=layout)))
        c.mux(video.encode(None))
    return stream.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy that is damaged in one to three ways."""
    for _ in range(rng.integers(1, 4)):
        change: Callable[[bytes, np.random.Generator], bytes] = _WAYS[rng.integers(len(_WAYS))]
        data = change(data, rng) if data else data
    return data


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 17)):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    first = int(rng.integers(len(data)))
    return first, min(len(data), first + int(2 ** rng.uniform(0, 12)))


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def _leave_out(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + data[last:]


def _double(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:last] + data[first:last] * int(rng.integers(1, 4)) + data[last:]


def _swap(data: bytes, rng: np.random.Generator) -> bytes:
    a, b, c, d = sorted(rng.integers(len(data) + 1, size=4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _run(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(data, rng)
    return data[:first] + bytes([(0, 255)[rng.integers(2)]]) * (last - first) + data[last:]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """An extreme number near the beginning or, where MP4 has its index, near the end."""
    length = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 2**63 - 1, 255]))
    order = "big" if rng.random() < 0.5 else "little"
    number = (value % 2 ** (8 * length)).to_bytes(length, order)
    near = int(rng.integers(min(len(data), 1024)))
    place = near if rng.random() < 0.6 else max(0, len(data) - near - length)
    return data[:place] + number + data[place + length :]


_WAYS = (_flip, _flip, _cut, _leave_out, _double, _swap, _run, _header, _header, _header)


@functools.cache
def whole(kind: str) -> bytes:
    """The file that those of a kind are made of."""
    return whole_picture(kind) if kind in PICTURES else whole_clip(kind)


def file_of(kind: str, number: int, seed: int) -> bytes:
    """Damaged file ``number`` of a kind."""
    return damaged(whole(kind), _rng(kind, number, seed))


def _rng(kind: str, number: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, *kind.encode()])


class _One:
    """A source of one record."""

    def __init__(self, kind: str, content: Any):
        self.name, self.videos = kind, kind in CLIPS
        self._record = Record(kind, content)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return self._record


class _Reasons(python_logging.Handler):
    """Keeps what the reader says of broken records."""

    said = ""

    def emit(self, record: python_logging.LogRecord) -> None:
        if "broken" in str(record.msg):
            self.said = record.getMessage().partition(": ")[2]


def read(kind: str, data: bytes, folder: pathlib.Path, rng: np.random.Generator) -> Found:
    """Reads a file as training does; half of the clips from a path and half from memory."""
    content: Any = data
    if kind in CLIPS and rng.random() < 0.5:
        content = folder / f"file.{kind.split()[0]}"
        content.write_bytes(data)
    reader = Reader(
        _One(kind, content),
        size=32,
        filter="bicubic",
        draft=True,
        max_broken=1.0,
        cache=FrameCache(int(rng.integers(2))),
    )
    choose = functools.partial(
        clip_lengths.train_frames, length=int(rng.integers(1, 6)), stride=1, draw=rng.random()
    )
    heard, logger = _Reasons(), logging.get_absl_logger()
    logger.addHandler(heard)
    try:
        clip = reader.read(0, choose)
        if clip is None:
            return Found("broken", heard.said)
        crop = transforms.random_clip_crop(clip, (24, 24), rng)
        if crop.dtype != np.uint8 or crop.shape[1:] != (24, 24, 3):
            return Found("escaped", f"gave {crop.dtype} {crop.shape}")
        return Found("read", "")
    except Exception as error:
        return Found("escaped", f"{type(error).__name__}: {error}")
    finally:
        logger.removeHandler(heard)


def _work(pipe: Connection, seed: int) -> None:
    """Reads what is asked for over the pipe, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the decoders and the reader say
    with tempfile.TemporaryDirectory() as folder:
        while (job := pipe.recv()) is not None:
            kind, number = job
            rng = _rng(kind, number, seed)
            found = read(kind, damaged(whole(kind), rng), pathlib.Path(folder), rng)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            pipe.send((found, most))


class _Worker:
    """A process that reads, started anew when it dies."""

    def __init__(self, seed: int):
        self._seed = seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._seed), daemon=True)
        self._process.start()
        other.close()
        self.job: tuple[str, int] | None = None
        self.since = 0.0

    def give(self, job: tuple[str, int] | None) -> None:
        self.job, self.since = job, time.monotonic()
        self.pipe.send(job)

    def answer(self, limit: float) -> tuple[Found, int] | None:
        """What it found and the most MiB it has used; None while it still reads."""
        if self.pipe.poll():
            try:
                result: tuple[Found, int] = self.pipe.recv()
            except EOFError:
                self._process.join()
                code = self._process.exitcode
                self._start()
                return Found("crashed", f"exit status {code}"), 0
            self.job = None
            return result
        if time.monotonic() - self.since < limit:
            return None
        self._process.kill()
        self._process.join()
        self._start()
        return Found("hung", f"not read in {limit:g} s"), 0


def fuzz(
    jobs: Sequence[tuple[str, int]], seed: int, workers: int, limit: float
) -> tuple[dict[tuple[str, int], Found], int]:
    """Reads damaged files in processes; gives what became of each and the most MiB used."""
    waiting, most = collections.deque(jobs), 0
    found: dict[tuple[str, int], Found] = {}
    pool = [_Worker(seed) for _ in range(workers)]
    while len(found) < len(jobs):
        for worker in pool:
            if worker.job is None and waiting:
                worker.give(waiting.popleft())
        busy = [worker for worker in pool if worker.job is not None]
        wait([worker.pipe for worker in busy], timeout=0.5)
        for worker in busy:
            job = worker.job
            answer = worker.answer(limit)
            if answer is not None and job is not None:
                found[job], most = answer[0], max(most, answer[1])
    for worker in pool:
        worker.give(None)
    return found, most


def _class(reason: str) -> str:
    text = re.sub(r"'[^']*'|/\S+", "...", reason)
    return re.sub(r"\d+(\.\d+)?", "N", text)[:70]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000, help="damaged files of all kinds")
    parser.add_argument("--clips", type=int, default=2000, help="damaged files of each container")
    parser.add_argument("--kinds", nargs="+", default=[*PICTURES, *CLIPS], help="which kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=30, help="seconds that a file may take")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    parser.add_argument("--show", nargs=2, metavar=("KIND", "NUMBER"), help="writes out one file")
    args = parser.parse_args()
    if args.show:
        sys.stdout.buffer.write(file_of(args.show[0], int(args.show[1]), args.seed))
        return 0

    pictures = [kind for kind in args.kinds if kind in PICTURES]
    counts = {kind: -(-args.pictures // len(pictures)) for kind in pictures}
    counts |= {kind: args.clips for kind in args.kinds if kind in CLIPS}
    jobs = [(kind, number) for kind, count in counts.items() for number in range(count)]
    found, most = fuzz(jobs, args.seed, args.workers, args.limit)
    outcomes = ("read", "broken", "escaped", "crashed", "hung")
    print("| kind | files | " + " | ".join(outcomes) + " |")
    print("| --- " * (len(outcomes) + 2) + "|")
    rows = {}
    for kind, count in counts.items():
        of = collections.Counter(one.outcome for (k, _), one in found.items() if k == kind)
        rows[kind] = {"files": count, **{name: of[name] for name in outcomes}}
        print(f"| {kind} | " + " | ".join(str(value) for value in rows[kind].values()) + " |")
    reasons = collections.Counter(
        _class(one.reason) for one in found.values() if one.outcome == "broken"
    )
    print("\nReasons of broken records:")
    for reason, count in reasons.most_common():
        print(f"{count:6d} {reason}")
    print(f"\nMost memory of a process: {most} MiB")
    bad = {job: one for job, one in found.items() if one.outcome not in ("read", "broken")}
    for (kind, number), one in bad.items():
        print(f"{one.outcome}: --show {kind!r} {number} --seed {args.seed}: {one.reason}")
    if args.json:
        args.json.write_text(
            json.dumps({"seed": args.seed, "kinds": rows, "reasons": reasons, "most_mib": most})
        )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
