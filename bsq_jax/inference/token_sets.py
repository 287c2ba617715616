"""Makes token sets: a data set tokenized once, which priors and masked models train on."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.progress import progress
from bsq_jax.data.batches import Batches
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.records import Source, classes_of
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.size_buckets import name
from bsq_jax.data.sources import open_source
from bsq_jax.data.tokens import FILE, TokenSet, how_made, split_path, write_description, write_split
from bsq_jax.data.train_pipeline import train_batches
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training.export import identity

_BATCH = 16


def tokenize(
    folder: pathlib.Path, tokenizer: Tokenizer, config: ConfigDict, *, examples: int, quiet: bool
) -> TokenSet:
    """Writes a token set.

    Args:
      folder: a new folder; a set in it is replaced once all of the new one is written.
      tokenizer: the tokenizer.
      config: whose ``data`` says what to read.
      examples: training crops; 0 for as many as there are records.
      quiet: draw no progress.

    Raises:
      UserError: the data cannot be read, or the folder not written.
    """
    if tokenizer.shape.patch_time > 1:
        raise UserError(
            f"model.patch_time is {tokenizer.shape.patch_time}: sets of tokens are for models of "
            "tokens of single frames, model.patch_time=1"
        )
    data = dataclasses.replace(make_data_config(config), labels=True)
    if data.sizes:
        say_once(f"a token set has one grid: all crops are of {name(data.crop)}, not of data.sizes")
        data = data.of_one_size()
    source = open_source(data, "train")
    shown = eval_examples(data)
    alone: dict[str, Any] = {"global_batch": _BATCH, "shard_index": 0, "shard_count": 1}
    splits: dict[str, tuple[Callable[[], Batches], int]] = {
        "train": (lambda: train_batches(data, **alone), examples or len(source)),
        "val": (lambda: eval_batches(data, **alone, examples=shown), len(shown.records)),
    }
    # Beside the set that may be there, so that one which is not finished changes nothing.
    paths = {split: split_path(folder, split) for split in splits}
    parts = {split: path.with_name(f"{path.name}.part") for split, path in paths.items()}
    counts = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, (open_batches, count) in splits.items():
            with progress(count, "clips", quiet=quiet) as advance:
                clips = tokenized_clips(tokenizer, open_batches(), count)
                counts[split] = write_split(parts[split], advance(clips, lambda _: 1))
        # Between two sets there is none: an old description never stands beside new records.
        (folder / FILE).unlink(missing_ok=True)
        for split, path in parts.items():
            path.replace(paths[split])
        tokens = _described(folder, tokenizer, data, source, shown.frames, counts)
        write_description(tokens)
    except OSError as error:
        raise UserError(f"cannot write the token set {folder}: {error.strerror}") from error
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
    return tokens


def tokenized_clips(
    tokenizer: Tokenizer, batches: Batches, count: int
) -> Iterator[tuple[np.ndarray, int]]:
    """The tokens of the real frames of clips, one clip after the other.

    Args:
      tokenizer: the tokenizer.
      batches: with labels; closed at the end.
      count: how many clips at most.

    Yields:
      Bits ``[frames, rows, columns, bits]`` of a clip, and its class.
    """
    with contextlib.closing(batches):
        for batch in batches:
            pixels, frames = batch["pixels"], batch["frames"]
            bits = tokenizer.encode_parts(pixels)
            for row in np.flatnonzero(batch.get("mask", np.ones(len(bits)))):
                real = bits[row][: frames[row]]
                if frames[row] < len(bits[row]) and not tokenizer.shape.visibility.streams:
                    # Its frames have attended to the padding: it is encoded alone, without any.
                    real = tokenizer.encode_parts(pixels[row : row + 1, : frames[row]])[0]
                yield real, int(batch["label"][row])
                count -= 1
                if not count:
                    return


def _described(
    folder: pathlib.Path,
    tokenizer: Tokenizer,
    data: DataConfig,
    source: Source,
    eval_frames: int,
    counts: dict[str, int],
) -> TokenSet:
    """What the description of a token set says."""
    # A source of pictures gives clips of one frame, whatever the settings say.
    frames = max(data.frames if source.videos else 1, eval_frames)
    return TokenSet(
        folder=folder,
        model=identity(tokenizer.config, tokenizer.params).hex(),
        frames=frames,
        grid=tokenizer.shape.grid,
        bits=tokenizer.shape.bits,
        counts=counts,
        source=data.source,
        classes=classes_of(source),
        made={
            **how_made(data),
            "frames": frames,
            "made_from": data.val_source or data.source,
        },
        tokenizer=tokenizer.origin,
    )
