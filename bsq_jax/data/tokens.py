"""Token sets: clips that were tokenized once, to train on without the tokenizer's work.

A folder with ``tokens.json`` and an array_record file for each split. A record is one clip: the
number of its frames and the number of its class (-1: not known) as 4 bytes each, little-endian, and
its bits, 8 a byte, in the order ``[time, row, column, bit]``, the first in the highest bit.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import grain
import numpy as np

from bsq_jax.core import checksums
from bsq_jax.core.errors import UserError
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import Batches, EpochOrder, local_batch
from bsq_jax.data.settings import DataConfig

SCHEME = "tokens:"
FILE = "tokens.json"
_FORMAT, _VERSION = "bsq_jax tokens", 2
_HEAD = 8  # bytes before the bits


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
    """

    folder: pathlib.Path
    model: str
    frames: int
    grid: tuple[int, int]
    bits: int
    counts: dict[str, int]
    source: str
    classes: tuple[str, ...] = ()


def _array_record() -> Any:
    try:
        from array_record.python import array_record_data_source, array_record_module
    except ImportError as error:
        raise UserError(f"token sets need 'pip install array_record' ({error})") from error
    return array_record_module, array_record_data_source


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
    """Writes ``tokens.json``, the last file of a set."""
    described = {"format": _FORMAT, "version": _VERSION, **tokens._asdict()}
    del described["folder"]
    text = json.dumps(described, indent=2) + "\n"
    checksums.write_atomic(tokens.folder / FILE, text.encode())


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
        )
    except OSError as error:
        raise UserError(
            f"{folder} is no token set ({FILE}: {error.strerror}): make one with "
            "python -m bsq_jax.tokenize"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}): tokenize again") from None


class _Clips:
    """Random access to the clips of a split."""

    def __init__(self, tokens: TokenSet, split: str):
        _, source = _array_record()
        path = tokens.folder / f"{split}.array_record"
        try:
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
        self._tokens, self._path = tokens, path

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
        filling = np.broadcast_to(bits[-1], (tokens.frames - time, *bits.shape[1:]))
        return np.concatenate([bits, filling]), int(time), int(label)


def token_batches(
    tokens: TokenSet,
    split: str,
    config: DataConfig,
    *,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    start_step: int = 0,
    earlier: BatchSizes | None = None,
) -> Batches:
    """Batches of this host: endless and shuffled of 'train', every clip once of 'val'.

    As :func:`bsq_jax.data.pipeline.train_batches` and ``eval_batches``, with ``bits`` uint8
    ``[local batch, time, row, column, bit]`` in place of pixels.

    Raises:
      UserError: The set cannot be read, or the batch does not divide.
    """
    local = local_batch(global_batch, shard_index, shard_count)
    clips = _Clips(tokens, split)
    order = EpochOrder(len(clips), config.seed)

    def load(position: int) -> dict[str, Any]:
        there = split == "train" or position < len(clips)
        index = order[position] if split == "train" else min(position, len(clips) - 1)
        bits, frames, label = clips[index]
        example = {
            "bits": bits,
            "frames": np.int32(frames),
            "mask": np.float32(there),
            "index": np.int64(index if there else -1),
        }
        return {**example, "label": np.int32(label)} if config.labels else example

    sizes = (earlier or BatchSizes(((0, global_batch),))).going_on(start_step, global_batch)
    begin = sizes.examples(start_step)
    total = 2**62 if split == "train" else -(-len(clips) // global_batch) * global_batch
    dataset = grain.MapDataset.range(total).map(load).slice(slice(begin % global_batch, None))
    dataset = dataset.batch(local).slice(slice(shard_index, None, shard_count))
    return Batches(dataset, config, [], start=begin // global_batch)
