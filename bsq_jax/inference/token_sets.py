"""Makes token sets: a data set tokenized once, which priors and masked models train on."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.progress import progress
from bsq_jax.data.batches import Batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.pipeline import eval_batches, eval_examples, open_source, train_batches
from bsq_jax.data.records import classes_of
from bsq_jax.data.tokens import FILE, TokenSet, how_made, split_path, write_description, write_split
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
    data, shape = make_data_config(config), tokenizer.shape
    data = dataclasses.replace(data, labels=True)
    source = open_source(data, "train")
    shown = eval_examples(data)
    examples = examples or len(source)
    # A source of pictures gives clips of one frame, whatever the settings say.
    frames = data.frames if source.videos else 1
    alone: dict[str, Any] = {"global_batch": _BATCH, "shard_index": 0, "shard_count": 1}

    def clips(batches: Batches, count: int) -> Iterator[tuple[np.ndarray, int]]:
        with contextlib.closing(batches):
            for batch in batches:
                pixels, frames = batch["pixels"], batch["frames"]
                bits = tokenizer.encode_parts(pixels)
                for row, clip in enumerate(bits):
                    if batch.get("mask", np.ones(len(bits)))[row]:
                        real = clip[: frames[row]]
                        if frames[row] < len(clip) and not shape.visibility.streams:
                            # Its frames have seen the padding: by itself it has none.
                            real = tokenizer.encode_parts(pixels[row : row + 1, : frames[row]])[0]
                        yield real, int(batch["label"][row])
                        count -= 1
                        if not count:
                            return

    counts, written = {}, {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in (("train", examples), ("val", len(shown.records))):
            if split == "train":
                batches = train_batches(data, **alone)
            else:
                batches = eval_batches(data, **alone, examples=shown)
            # Beside the set that may be there, so that one which is not finished changes nothing.
            path = split_path(folder, split)
            written[split] = path.with_name(f"{path.name}.part")
            with progress(count, "clips", quiet=quiet) as advance:
                made = advance(clips(batches, count), lambda _: 1)
                counts[split] = write_split(written[split], made)
        # Between two sets there is none: old words never stand beside new records.
        (folder / FILE).unlink(missing_ok=True)
        for split, path in written.items():
            path.replace(split_path(folder, split))
        tokens = TokenSet(
            folder=folder,
            model=identity(tokenizer.config, tokenizer.params).hex(),
            frames=max(frames, shown.frames),
            grid=shape.grid,
            bits=shape.bits,
            counts=counts,
            source=data.source,
            classes=classes_of(source),
            made={
                **how_made(data),
                "frames": max(frames, shown.frames),
                "made_from": data.val_source or data.source,
            },
        )
        write_description(tokens)
    except OSError as error:
        raise UserError(f"cannot write the token set {folder}: {error.strerror}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)
    return tokens
