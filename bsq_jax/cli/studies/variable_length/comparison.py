"""Block-causal attention on clips of any length against full attention on clips of one length.

The study trains two tokenizers of the same size from random weights on the same videos, and
measures both on clips of 1, 2, 4, ... frames from the beginnings of the same validation clips:

* ``block-causal``: a token sees the frames up to its own; trained on clips of 1 to T frames.
* ``full``: a token sees the whole clip; trained on clips of T frames. Shorter clips are given to it
  as they are, and once more filled up to T frames by repeating the last one, which costs as much as
  T frames and lets the tokens of the repetitions carry bits as well.

Equal budget: both compute the same number of frames in training, filling included, so the
block-causal one takes more steps over shorter clips. Both spend the same bits on a frame.
Everything a run leaves lies in the workdir; stopped and started again it goes on.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.cli.studies.measured import frame_psnr
from bsq_jax.cli.studies.report import mean_and_spread, save, text_table
from bsq_jax.cli.studies.settings import set_values, small_config
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.data.clip_lengths import Schedule
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.figures import line_figure
from bsq_jax.training import train_run

ARMS = ("block-causal", "full")


def arm_config(
    arm: str, frames: int, steps: int, seed: int, overrides: Sequence[str]
) -> ConfigDict:
    """The config of one of the two models.

    Args:
      arm: one of `ARMS`.
      frames: the longest clip, T.
      steps: training steps of the model with full attention; the other gets as many as fit into
        the same number of computed frames.
      seed: of parameters, data order and augmentation.
      overrides: more settings, each ``key=value`` of `bsq_jax.config`.

    Raises:
      UserError: an override is wrong.
    """
    config = small_config(steps, seed)
    config.name = f"{arm}, seed {seed}"
    config.model.update(
        frames=frames, causality="block_causal" if arm == "block-causal" else "full"
    )
    config.data.update(
        source="motion",
        resize=0,
        eval_resize=64,
        eval_clips=4,
        min_frames=1 if arm == "block-causal" else 0,
        filter="bilinear",
        threads=1,
        cache_mb=512,
    )
    config.train.batch_size = 8
    config.eval.update(batch_size=4, lpips=False)
    set_values(config, overrides)
    if arm == "block-causal":
        config.train.steps = equal_steps(config, steps * config.model.frames)
    return finalize(config)


def equal_steps(config: ConfigDict, budget: int) -> int:
    """The most steps whose clips have at most `budget` frames, the batch size left out."""
    schedule = Schedule(make_data_config(config))
    steps = total = 0
    while (total := total + schedule.step(steps).frames) <= budget:
        steps += 1
    return steps


def lengths(frames: int) -> list[int]:
    """The lengths that are measured: powers of two, and the longest."""
    return sorted({2**power for power in range(frames.bit_length())} | {frames})


def measure(config: ConfigDict, tokenizer: Tokenizer, *, fill: int = 0) -> dict[int, float]:
    """PSNR over validation clips of each length, mean over the frames of all clips.

    Args:
      config: says which clips.
      tokenizer: the model.
      fill: frames that shorter clips are filled up to, by repeating the last; 0 for none.

    Returns:
      PSNR in dB by number of frames; the same clips count at every length.
    """
    data = make_data_config(config)
    values: dict[int, list[float]] = {length: [] for length in lengths(config.model.frames)}
    batches = eval_batches(data, global_batch=config.eval.batch_size, shard_index=0, shard_count=1)
    for batch in batches:
        clips = batch["pixels"][(batch["mask"] > 0) & (batch["frames"] == config.model.frames)]
        for length, found in values.items():
            part = given = clips[:, :length]
            if fill > length:
                rest = np.repeat(part[:, -1:], fill - length, axis=1)
                given = np.concatenate([part, rest], axis=1)
            made = tokenizer.reconstruct(given, dtype="uint8")[:, :length]
            found += list(frame_psnr(part, made).ravel())
    batches.close()
    if not values[1]:
        raise UserError(
            f"{data.val_source or data.source} has no validation clip of {config.model.frames} "
            "frames: choose fewer with --frames, or another source"
        )
    return {length: float(np.mean(found)) for length, found in values.items()}


def table_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table's cells: titles, then a row a length, a column a model, mean over seeds."""
    names = list(results[0]["psnr"])
    rows = [["frames", *names]]
    for length in results[0]["psnr"][names[0]]:
        of = [[result["psnr"][name][length] for result in results] for name in names]
        rows.append([str(length), *map(mean_and_spread, of)])
    return rows


def study(
    workdir: pathlib.Path, frames: int, steps: int, seeds: Sequence[int], overrides: Sequence[str]
) -> str:
    """Trains and measures; writes results, table and ``variable_length.png`` into `workdir`.

    Returns:
      What to print at the end.

    Raises:
      UserError: a setting is wrong, or the data cannot be read.
    """
    results = []
    for seed in seeds:
        result: dict[str, Any] = {"seed": seed, "steps": {}, "seconds": {}, "psnr": {}}
        for arm in ARMS:
            config = arm_config(arm, frames, steps, seed, overrides)
            folder = workdir / f"{arm}_{seed}"
            if status := train_run.train(config, folder):
                raise SystemExit(status)  # stopped by a signal, and saved
            tokenizer = Tokenizer.load(folder)
            result["steps"][arm] = config.train.steps
            result["psnr"][arm] = measure(config, tokenizer)
            if arm == "full":
                result["psnr"]["full, filled up"] = measure(config, tokenizer, fill=frames)
        results.append(result)
    named = {
        name: [
            (length, float(np.mean([result["psnr"][name][length] for result in results])))
            for length in results[0]["psnr"][name]
        ]
        for name in results[0]["psnr"]
    }
    picture = workdir / "variable_length.png"
    line_figure(picture, named, x="frames of the clip", y="PSNR (dB)", logarithmic=True)
    rows = table_rows(results)
    record = save(workdir, results, rows)
    steps_ = ", ".join(f"{arm}: {count}" for arm, count in results[0]["steps"].items())
    return (
        f"PSNR (dB) by length of the clip, averaged weights\n{text_table(rows)}\n"
        f"steps ({steps_}), the same number of computed frames\n"
        f"report: {record}\npicture: {picture}"
    )
