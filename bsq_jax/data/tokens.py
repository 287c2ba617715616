"""Token sets: clips that were tokenized once, to train on without the tokenizer's work.

A folder with ``tokens.json`` and an array_record file for each split. A record is one clip: the
number of its frames and the number of its class (-1: not known) as 4 bytes each, little-endian, and
its bits, 8 a byte, in the order ``[time, row, column, bit]``, the first in the highest bit.
``tokens.json`` has the size and SHA-256 of these files, so that records of another run or damaged
ones are not taken for those that it describes; sets from before this was recorded open too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import grain
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import ENDLESS, Batches, EpochOrder, local_batch
from bsq_jax.data.settings import DataConfig

TOKENS_SCHEME = "tokens:"
FILE = "tokens.json"
_FORMAT, _VERSION = "bsq_jax tokens", 2
_HEAD = 8  # bytes before the bits


NamesCode = Callable[[np.ndarray], np.ndarray]
"""Which tokens, uint8 0/1 ``[..., bit]``, name a code of their tokenizer: booleans ``[...]``."""


class TokenSet(NamedTuple):
    """What a folder of tokens says of itself.

    Attributes:
      folder: where it is.
      model: identity of the tokenizer, in hex.
      frames: of the longest clip.
      grid: (rows, columns) of a frame.
      bits: of a token.
      counts: clips by split.
      source: where they come from, for people to read.
      classes: names of the classes; empty if there are none.
      made: how frames were cut out, see `how_made`; empty in sets from before it was recorded.
      files: (bytes, SHA-256 in hex) of the file of each split; empty likewise.
      tokenizer: ``name`` and training ``step`` of the tokenizer, as far as it tells them.
    """

    folder: pathlib.Path
    model: str
    frames: int
    grid: tuple[int, int]
    bits: int
    counts: dict[str, int]
    source: str
    classes: tuple[str, ...] = ()
    made: Mapping[str, Any] = MappingProxyType({})
    files: Mapping[str, tuple[int, str]] = MappingProxyType({})
    tokenizer: Mapping[str, Any] = MappingProxyType({})


def _array_record() -> Any:
    try:
        from array_record.python import array_record_data_source, array_record_module
    except ImportError as error:
        raise UserError(f"token sets need 'pip install array_record' ({error})") from error
    return array_record_module, array_record_data_source


def how_made(data: DataConfig) -> dict[str, Any]:
    """What examples for validation are, as reports say it."""
    several = data.eval_crop == "bucket"  # each example has one of these sizes
    return {
        **({"sizes": [list(size) for size in data.sizes]} if several else {}),
        "image_size": list(data.crop),
        "resize": data.eval_resize,
        "crop": data.eval_crop,
        "frames": data.frames,
        "stride": data.stride,
    }


def measured(data: DataConfig, tokens: TokenSet | None) -> dict[str, Any]:
    """What a model of tokens is measured on, for its report.

    Args:
      data: the settings of the run; those of the pixels count where there is no token set.
      tokens: the token set that is read instead.

    Returns:
      ``source`` and what `how_made` gives; of a token set these as they were when it was made,
      None where it does not say, and ``made_from``, the source of its validation clips.
    """
    if tokens is None:
        return {"source": data.val_source or data.source, **how_made(data)}
    unknown = dict.fromkeys(how_made(data))
    made_from = {"made_from": tokens.source}
    return {"source": f"{TOKENS_SCHEME}{tokens.folder}", **unknown, **made_from, **tokens.made}


def measured_words(measured: Mapping[str, Any]) -> tuple[str, str, str]:
    """Size and crop of the frames of a report, where they are from, and how they were resized."""
    size, place = measured["image_size"], f"{measured['source']} (val)"
    if "made_from" in measured:
        place += f", made from {measured['made_from']}"
    if size is None:
        return "tokens", place, "how they were cut is not recorded"
    if sizes := measured.get("sizes"):
        side = ", ".join("x".join(map(str, one)) for one in sizes)
        return f"{side} ({measured['crop']})", place, "resized to cover the crop"
    side = "x".join(map(str, size))
    return f"{side} ({measured['crop']})", place, f"short side to {measured['resize']} pixels"


def split_path(folder: pathlib.Path, split: str) -> pathlib.Path:
    """The file with the records of a split."""
    return folder / f"{split}.array_record"


@functools.lru_cache(maxsize=16)
def _digest(path: pathlib.Path, size: int, changed: int) -> str:
    """SHA-256 of a file in hex; kept while it has the same size and time."""
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: pathlib.Path) -> tuple[int, str]:
    found = path.stat()
    return found.st_size, _digest(path, found.st_size, found.st_mtime_ns)


def write_split(path: pathlib.Path, clips: Iterable[tuple[np.ndarray, int]]) -> int:
    """Writes clips, uint8 0/1 ``[time, row, column, bit]``, with their classes; says how many."""
    module, _ = _array_record()
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    count = 0
    try:
        for bits, label in clips:
            head = np.array([len(bits), label], "<i4").tobytes()
            writer.write(head + np.packbits(bits).tobytes())
            count += 1
    finally:
        writer.close()
    return count


def write_description(tokens: TokenSet) -> None:
    """Writes ``tokens.json``, the last file of a set, with the checksums of the others."""
    described = {"format": _FORMAT, "version": _VERSION, **tokens._asdict()}
    del described["folder"]
    described["made"] = dict(tokens.made)
    described["tokenizer"] = dict(tokens.tokenizer)
    described["files"] = {
        split: _entry(split_path(tokens.folder, split)) for split in tokens.counts
    }
    text = json.dumps(described, indent=2) + "\n"
    write_atomic(tokens.folder / FILE, text.encode())


def read_description(place: str | os.PathLike[str]) -> TokenSet:
    """What a set says of itself.

    Raises:
      UserError: it is none, or was not finished.
    """
    folder = pathlib.Path(place).expanduser()
    try:
        described = json.loads((folder / FILE).read_bytes())
        if described["format"] != _FORMAT or described["version"] != _VERSION:
            raise UserError(f"{folder / FILE} is not of this version: tokenize again")
        return TokenSet(
            folder=folder,
            model=described["model"],
            frames=int(described["frames"]),
            grid=(int(described["grid"][0]), int(described["grid"][1])),
            bits=int(described["bits"]),
            counts={name: int(count) for name, count in described["counts"].items()},
            source=str(described["source"]),
            classes=tuple(str(name) for name in described["classes"]),
            made=dict(described.get("made", {})),
            files={
                split: (int(size), str(digest))
                for split, (size, digest) in described.get("files", {}).items()
            },
            tokenizer=dict(described.get("tokenizer", {})),
        )
    except OSError as error:
        raise UserError(
            f"{folder} is no token set ({FILE}: {error.strerror}): make one with "
            "python -m bsq_jax tokenize"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}): tokenize again") from None


class _Clips:
    """Random access to the clips of a split."""

    def __init__(self, tokens: TokenSet, split: str, names_code: NamesCode):
        _, source = _array_record()
        path = split_path(tokens.folder, split)
        try:
            if split in tokens.files and _entry(path) != tokens.files[split]:
                raise UserError(
                    f"{path} is not the file that {FILE} describes (its size or SHA-256 differs): "
                    "tokenize again"
                )
            self._records = source.ArrayRecordDataSource([str(path)])
            found = len(self._records)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} cannot be read ({reason}): tokenize again") from None
        if found != tokens.counts.get(split) or not found:
            raise UserError(
                f"{path} holds {found} clips, not the {tokens.counts.get(split, 0)} that {FILE} "
                "says: tokenize again"
            )
        self._tokens, self._path, self._names_code = tokens, path, names_code

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        """Bits of a clip filled up with its last frame, its number of frames, and its class."""
        try:
            record = self._records[index]
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{self._path} is damaged ({reason}): tokenize again") from None
        tokens = self._tokens
        size = tokens.grid[0] * tokens.grid[1] * tokens.bits
        time, label = np.frombuffer(record[:_HEAD], "<i4") if len(record) > _HEAD else (0, 0)
        if not 1 <= time <= tokens.frames or len(record) != _HEAD + -(-time * size // 8):
            raise UserError(f"clip {index} of {self._path} is damaged: tokenize again")
        flat = np.unpackbits(np.frombuffer(record[_HEAD:], np.uint8), count=time * size)
        bits = flat.reshape(time, *tokens.grid, tokens.bits)
        if not self._names_code(bits).all():
            raise UserError(
                f"clip {index} of {self._path} holds tokens that name no code: tokenize again"
            )
        filling = np.broadcast_to(bits[-1], (tokens.frames - time, *bits.shape[1:]))
        return np.concatenate([bits, filling]), int(time), int(label)


def token_batches(
    tokens: TokenSet,
    split: str,
    config: DataConfig,
    *,
    names_code: NamesCode,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    start_step: int = 0,
    earlier: BatchSizes | None = None,
) -> Batches:
    """Batches of this host: endless and shuffled of 'train', every clip once of 'val'.

    As `train_pipeline.train_batches` and `eval_pipeline.eval_batches`, with ``bits`` uint8
    ``[local batch, time, row, column, bit]`` in place of pixels.

    Raises:
      UserError: the set cannot be read, or the batch does not divide.
    """
    local = local_batch(global_batch, shard_index, shard_count)
    clips = _Clips(tokens, split, names_code)
    order = EpochOrder(len(clips), config.seed)

    def load(position: int) -> dict[str, Any]:
        there = split == "train" or position < len(clips)
        index = order[position] if split == "train" else min(position, len(clips) - 1)
        bits, frames, label = clips[index]
        if config.labels and label >= len(tokens.classes):
            raise UserError(
                f"clip {index} of {split_path(tokens.folder, split)} has class {label}, but "
                f"{FILE} names {len(tokens.classes)} classes, from 0: tokenize again"
            )
        example = {
            "bits": bits,
            "frames": np.int32(frames),
            "mask": np.float32(there),
            "index": np.int64(index if there else -1),
        }
        return {**example, "label": np.int32(label)} if config.labels else example

    sizes = (earlier or BatchSizes(((0, global_batch),))).going_on(start_step, global_batch)
    begin = sizes.examples(start_step)
    total = ENDLESS if split == "train" else -(-len(clips) // global_batch) * global_batch
    dataset = grain.MapDataset.range(total).map(load).slice(slice(begin % global_batch, None))
    dataset = dataset.batch(local).slice(slice(shard_index, None, shard_count))
    return Batches(dataset, config, [], start=begin // global_batch)
