"""What the page asks for, computed one at a time."""

from __future__ import annotations

import collections
import dataclasses
import functools
import secrets
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from bsq_jax.cli.demo_page import equal_size, opened_file, samples
from bsq_jax.cli.demo_page.heat_map import COLOURS, heat_map
from bsq_jax.cli.demo_page.opened_file import OpenedFile, open_file
from bsq_jax.cli.demo_page.shelf import Gone, Shelf
from bsq_jax.coding.codec import Codec
from bsq_jax.coding.coded_tokens import CodedTokens
from bsq_jax.coding.rate_distortion import make_measure
from bsq_jax.coding.rate_distortion_tables import METRICS
from bsq_jax.core.errors import UserError

MOST_UPLOAD = 2**25
"""Bytes of a file that is dropped on the page."""

_MOST_OPENED = 4  # files that are held
_MOST_CODED = 4  # numbers of bits of a file whose tokens are held
_NAME = 80  # letters of a file's name that are repeated

Answer = dict[str, Any]
"""What becomes JSON."""


@dataclasses.dataclass
class _Opened:
    """A file that was opened, and what was computed for it."""

    file: OpenedFile
    original: str  # its name on the shelf
    coded: collections.OrderedDict[int, _Coded] = dataclasses.field(
        default_factory=collections.OrderedDict
    )


@dataclasses.dataclass(frozen=True)
class _Coded:
    """A file coded with some number of bits a token."""

    tokens: CodedTokens
    frames: np.ndarray
    picture: str  # its name on the shelf
    kept: dict[str, Answer] = dataclasses.field(default_factory=dict)  # other answers with pictures


class Workbench:
    """Answers the requests of the page; each is a method that takes the fields of its JSON.

    All methods raise `UserError` for what is not there or cannot be. One lock is around each
    computation, so that requests that come together wait for each other.

    Attributes:
      shelf: the pictures that answers name.
    """

    def __init__(self, codec: Codec):
        """Takes the model."""
        self.shelf = Shelf()
        self._codec, self._lock = codec, threading.Lock()
        self._opened: collections.OrderedDict[str, _Opened] = collections.OrderedDict()

    def about(self) -> Answer:
        """The model, the photographs that come along, and the limits."""
        return {
            "model": self._codec.name,
            "bits": list(self._codec.variable_bits),
            "prior": self._codec.has_prior,
            "samples": list(samples.sample_names()),
            "limits": {
                "upload_bytes": MOST_UPLOAD,
                "pixels": opened_file.MOST_PIXELS,
                "clip_pixels": opened_file.MOST_CLIP_PIXELS,
                "frames": opened_file.MOST_FRAMES,
            },
        }

    def open(self, name: str, content: bytes) -> Answer:
        """Takes the bytes of a file."""
        name = "".join(letter for letter in name if letter.isprintable())[:_NAME] or "the file"
        with self._lock:
            file = open_file(name, content)
            opened = _Opened(file, self.shelf.put(file.frames))
            key = secrets.token_urlsafe(12)
            self._opened[key] = opened
            while len(self._opened) > _MOST_OPENED:
                self._opened.popitem(last=False)
        frames, height, width, _ = file.frames.shape
        return {
            "id": key,
            "name": name,
            "picture": opened.original,
            "height": height,
            "width": width,
            "frames": frames,
            "notes": list(file.notes),
            "codecs": ["bsq", *equal_size.codecs_for(frames)],
        }

    def sample(self, name: str) -> Answer:
        """Takes a photograph that comes along."""
        return self.open(name, samples.sample(name))

    def encode(self, id: str, bits: int) -> Answer:  # noqa: A002  # named as in the JSON
        """Codes a file: its size, the reconstruction, and where the prior spends bits."""
        with self._lock:
            coded = self._coded(id, bits)
            return {
                "bits": bits,
                "mode": coded.tokens.mode,
                "bytes": len(coded.tokens.file),
                "picture": coded.picture,
                "tokens": list(coded.tokens.tokens.shape[:3]),
                "map": self._kept(coded, "map", self._map)
                if coded.tokens.mode == "prior"
                else None,
            }

    def compare(self, id: str, bits: int, codec: str) -> Answer:  # noqa: A002
        """A line of the table: ``bsq``, or another codec at as many bytes at most."""
        with self._lock:
            opened, coded = self._find(id), self._coded(id, bits)
            compare = functools.partial(self._compare, opened.file, bits, codec)
            return self._kept(coded, codec, compare)

    def token(self, id: str, bits: int, frame: int, x: int, y: int) -> Answer:  # noqa: A002
        """The token that shows at a pixel, its bits and what each takes in the file."""
        with self._lock:
            tokens = self._coded(id, bits).tokens
            place = tokens.place(y, x)
            time = self._time(tokens, frame)
            costs = tokens.costs[time, place.row, place.column]
            return {
                "row": place.row,
                "column": place.column,
                "box": list(place.box),
                "bits": tokens.tokens[time, place.row, place.column].tolist(),
                "costs": costs.tolist(),
                "cost": float(costs.sum()),
            }

    def flip(  # the fields of the JSON
        self,
        id: str,  # noqa: A002
        bits: int,
        frame: int,
        row: int,
        column: int,
        flips: list[int],
    ) -> Answer:
        """The frame once more, with some bits of a token as their opposite."""
        with self._lock:
            coded = self._coded(id, bits)
            tokens = coded.tokens
            changed = tokens.flipped(self._time(tokens, frame), row, column, flips)
            after, before = tokens.decode_frame(frame, changed), coded.frames[frame]
            differs = np.abs(after.astype(np.int16) - before).max(axis=-1)
            rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
            box = None
            if len(rows):
                box = [int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1]
            return {
                "picture": self.shelf.put(after[None]),
                "box": box,
                "pixels": int(np.count_nonzero(differs)),
                "largest": int(differs.max()),
            }

    def _find(self, key: str) -> _Opened:
        try:
            opened = self._opened[key]
        except KeyError:
            raise Gone("this picture is held no longer: open it again") from None
        self._opened.move_to_end(key)
        self.shelf.touch(opened.original)
        return opened

    def _coded(self, key: str, bits: int) -> _Coded:
        """The file with so many bits a token, computed where it is not held."""
        opened = self._find(key)
        if bits not in opened.coded:
            tokens = self._codec.coded_tokens(opened.file.frames, opened.file.rate, bits=bits)
            frames = tokens.decode()
            opened.coded[bits] = _Coded(tokens, frames, self.shelf.put(frames))
            while len(opened.coded) > _MOST_CODED:
                opened.coded.popitem(last=False)
        opened.coded.move_to_end(bits)
        coded = opened.coded[bits]
        if not self.shelf.touch(coded.picture):
            coded = dataclasses.replace(coded, picture=self.shelf.put(coded.frames), kept={})
            opened.coded[bits] = coded
        return coded

    def _kept(self, coded: _Coded, key: str, make: Callable[[_Coded], Answer]) -> Answer:
        """An answer with a picture, made where it is not held."""
        answer = coded.kept.get(key)
        if answer is None or not self.shelf.touch(answer["picture"]):
            answer = coded.kept[key] = make(coded)
        return answer

    def _compare(self, file: OpenedFile, bits: int, codec: str, coded: _Coded) -> Answer:
        size = len(coded.tokens.file)
        answer: Answer = {"codec": codec, "fits": True}
        if codec == "bsq":
            title, setting = "this model", f"{bits} bits a token"
            frames, picture = coded.frames, coded.picture
        else:
            found = equal_size.at_most(codec, file.frames, file.rate, size)
            title, setting = equal_size.TITLES[codec], found.setting
            size, frames = found.coded.file_bytes, found.coded.frames
            answer["fits"], picture = found.fits, self.shelf.put(frames)
        rate = 8 * size / (file.frames.size // 3)
        answer |= {"title": title, "setting": setting, "bytes": size, "bits_a_pixel": rate}
        return answer | {"picture": picture, **self._measured(file.frames, frames)}

    def _map(self, coded: _Coded) -> Answer:
        """Pictures of the bits that each token takes, one for each frame, and their legend."""
        tokens = coded.tokens
        costs = tokens.costs.sum(axis=-1)
        highest = float(costs.max())
        times = [tokens.token_frame(frame) for frame in range(len(coded.frames))]
        pictures = np.stack([heat_map(tokens.as_pixels(costs[time]), highest) for time in times])
        return {
            "picture": self.shelf.put(pictures),
            "colours": list(COLOURS),
            "highest": highest,
            "mean": float(costs.mean()),
            "total": float(costs.sum()),
        }

    @staticmethod
    def _time(tokens: CodedTokens, frame: int) -> int:
        if frame < 0:
            raise UserError(f"frame {frame}: there is none")
        return tokens.token_frame(frame)

    def _measured(self, original: np.ndarray, frames: np.ndarray) -> Answer:
        """PSNR and LPIPS as JSON has them: None for what is infinite or cannot be computed."""
        least = min(original.shape[1:3])
        names = tuple(name for name in ("psnr", "lpips") if least >= METRICS[name].least)
        values = dict.fromkeys(("psnr", "lpips")) | _measure(names)(original, frames)
        return {
            name: value if value is not None and np.isfinite(value) else None
            for name, value in values.items()
        }


@functools.cache
def _measure(names: tuple[str, ...]) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    return make_measure(names)
