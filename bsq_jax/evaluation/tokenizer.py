"""Exact evaluation over a validation split, for raw and averaged parameters, with pictures."""

from __future__ import annotations

import json
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax.core.clips import real_frames
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.sharding import (
    HostShard,
    batch_shards,
    gather_strings,
    host_shard,
    jit_on,
    replicated,
    to_global,
)
from bsq_jax.data import transforms
from bsq_jax.data.pipeline import eval_batches, eval_examples
from bsq_jax.data.settings import DataConfig
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation import pictures as showing
from bsq_jax.evaluation.judges import Judges, Judging
from bsq_jax.evaluation.pictures import ORACLE, Shown
from bsq_jax.evaluation.tables import table
from bsq_jax.media import pictures, videos
from bsq_jax.media.figures import line_figure

__all__ = ["Evaluator", "evaluate", "table", "weight_sets"]

_PHOTOGRAPHS = 3  # whole pictures shown


class Evaluator:
    """Measures parameters on a validation split.

    Every example counts once, whatever the batch size and the number of hosts: values are kept for
    each frame, padding and unreadable files are masked out, and sums are float64.

    Attributes:
      frames: length of the clips in a batch; 1 for pictures.
      shorter: how many clips of the last pass have fewer frames.
      broken: names of the records that the last pass could not read.
    """

    def __init__(
        self,
        task: Any,
        data: DataConfig,
        mesh: Mesh,
        *,
        batch_size: int,
        judging: Judging | None = None,
    ):
        """Prepares an evaluation.

        Args:
          task: gives the evaluation step.
          data: which split to read, and how.
          mesh: the run's mesh.
          batch_size: global; rounded up to what the mesh divides.
          judging: which frozen networks judge besides; none by default.

        Raises:
          UserError: the split cannot be read, or the weights of a network.
        """
        shards = batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self._task, self._data, self._mesh = task, data, mesh
        self._shard: HostShard = host_shard(mesh, self.batch_size)
        self._examples = eval_examples(data)
        self.frames = self._examples.frames
        self.shorter, self.broken = 0, list[str]()
        # Replicated results: every host then holds the values of all examples.
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
        self._whole = jit_on(mesh, lambda batch: batch, out_shardings=replicated(mesh))
        self.judges = Judges(
            judging or Judging(),
            mesh,
            clip=(self.frames, *data.crop),
            patch=task.model.shape.patch_size,
            examples=len(self._examples.records),
        )

    def _run(self, params: Any) -> Iterator[tuple[dict[str, Any], ...]]:
        """The batches, what the task makes of them, and what the judges see."""
        batches = eval_batches(
            self._data,
            global_batch=self.batch_size,
            shard_index=self._shard.index,
            shard_count=self._shard.count,
            examples=self._examples,
        )
        for local in batches:
            batch = to_global(local, self._mesh)
            seen = ("pixels", "frames") if self.frames > 1 else ("pixels",)
            output = self._step(params, {name: batch[name] for name in seen})
            shown = self.judges.look(batch["pixels"], output["reconstruction"])
            yield jax.device_get((self._whole(batch), output, shown))
        self.broken = gather_strings(batches.stats()["broken_ids"])
        batches.close()

    def __call__(self, params: Any, wanted: int = 0) -> tuple[dict[str, Any], Shown | None]:
        """Measures one set of parameters.

        Args:
          params: parameters of the task's model, on the mesh.
          wanted: how many examples to return for looking at.

        Returns:
          ``(result, shown)``: the means by name with ``count`` and the code usage; and the examples
          to look at, the first pictures, or clips evenly spaced over the split. Of clips a mean is
          the mean over clips of the mean over a clip's frames, but ``psnr_clip`` the mean of the
          clips' PSNR, each from the squared error of the whole clip; and ``per_frame`` has the
          means over clips at each frame index. Names that begin with ``oracle_`` are of the best
          one colour a patch.
        """
        means, of_clips = metrics.ClipMeans(), metrics.MeanAccumulator()
        usage = metrics.CodeUsage(self._task.model.shape.bits)
        shown: list[tuple[np.ndarray, ...]] = []
        self.shorter = count = 0
        seen = self.judges.begin()
        for batch, output, judged in self._run(params):
            reconstruction, bits = output.pop("reconstruction"), output.pop("bits")
            frames, counted = batch["frames"], batch["mask"] > 0
            means.update({**output, **judged["values"]}, batch["mask"], frames)
            if self.frames > 1:
                names = [name for name in ("psnr", "oracle_psnr") if name in output]
                whole = {f"{n}_clip": metrics.clip_psnr(output[n], frames) for n in names}
                of_clips.update(whole, batch["mask"])
            seen.update(judged, batch)
            usage.update(bits, counted[:, None] & real_frames(frames, self.frames))
            count += int(np.sum(counted))
            self.shorter += int(np.sum(counted & (frames < self.frames)))
            chosen = self._chosen(batch["index"], wanted) & counted
            parts = (part[chosen] for part in (batch["pixels"], reconstruction, frames))
            shown += zip(*parts, strict=True)
            del shown[wanted:]
        result = {**means.result(), **self.judges.result(seen), **usage.result(), "count": count}
        if self.frames > 1:
            result |= of_clips.result()
            result["per_frame"] = means.per_frame()
        examples = Shown(*map(np.stack, zip(*shown, strict=True))) if shown else None
        return result, examples

    def _chosen(self, index: np.ndarray, wanted: int) -> np.ndarray:
        """Which examples to keep for looking at, in order until there are as many as wanted."""
        if self.frames == 1:
            return np.ones(len(index), bool)
        # Clips beside each other are often of one video.
        total = len(self._examples.records)
        return index * wanted // total > (index - 1) * wanted // total

    def photographs(self, params: Any) -> np.ndarray | None:
        """A picture of whole validation photographs, coded tile by tile.

        Returns:
          uint8 ``[height, width, 3]``: originals, reconstructions and the best one-colour-per-patch
          pictures; None where no photograph is readable, and for videos. The same on every host.
        """
        source = self._examples.source
        if source.videos:
            return None
        height, width = self._data.crop
        size = max(self._data.eval_resize, 2 * min(height, width))
        originals = []
        for index in range(len(source)):
            try:
                image = transforms.load_resized(
                    source[index], size, self._data.eval_filter, draft=False
                )
            except (transforms.BrokenRecord, OSError):
                continue
            long = isinstance(image, transforms.Long)
            rows, columns = transforms.tile_grid(image.shape, (height, width), long=long)
            originals.append(
                transforms.center_crop(image, (rows * height, max(columns, 1) * width))
            )
            if len(originals) == _PHOTOGRAPHS:
                break
        if not originals:
            return None
        reconstructions = [self._reconstruct_tiles(params, image) for image in originals]
        shape = self._task.model.shape
        return showing.photographs(
            originals, reconstructions, patch=shape.patch_size, bits=shape.bits
        )

    def _reconstruct_tiles(self, params: Any, image: np.ndarray) -> np.ndarray:
        height, width = self._data.crop
        tiles = rearrange(image, "(a h) (b w) c -> (a b) 1 h w c", h=height, w=width)
        done = []
        local = self.batch_size // self._shard.count
        start = self._shard.index * local
        for first in range(0, len(tiles), self.batch_size):
            chunk = tiles[first : first + self.batch_size]
            padded = np.zeros((self.batch_size, *tiles.shape[1:]), np.uint8)
            padded[: len(chunk)] = chunk
            batch = to_global({"pixels": padded[start : start + local]}, self._mesh)
            output = self._step(params, batch)
            done.append(jax.device_get(output["reconstruction"])[: len(chunk)])
        rows = image.shape[0] // height
        return rearrange(
            np.concatenate(done), "(a b) 1 h w c -> (a h) (b w) c", a=rows
        )  # fmt: skip


def weight_sets(params: Any, ema: Any) -> dict[str, Any]:
    """The parameters to evaluate, by the name they have in tables."""
    return {"raw": params} | ({} if ema is None else {"ema": ema})


def evaluate(
    evaluator: Evaluator,
    weights: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    name: str,
    step: int,
    data: DataConfig,
    pictures_wanted: int = 8,
    videos_wanted: int = 0,
    suffix: str = "",
) -> dict[str, Any]:
    """Evaluates each set of weights; process 0 writes ``evaluation.json``, pictures and videos.

    Args:
      evaluator: the evaluator.
      weights: parameters by name, such as ``raw`` and ``ema``; pictures and videos show the last.
      workdir: folder of the run.
      name: the model's name, for the record.
      step: training step of the weights, for the record and the names of the pictures.
      data: how was measured, for the record.
      pictures_wanted: examples in the grid, of clips a few at most; 0 for no pictures at all.
      videos_wanted: clips to write as videos beside their reconstructions.
      suffix: put before the ending of all file names, to keep evaluations on other data apart.

    Returns:
      The report that was written: a result for each set of weights under
      ``results``, how it was measured under ``measured``, and the paths under ``pictures`` and
      ``videos``.

    Raises:
      UserError: the folder cannot be written to, or there is no encoder for videos; on all
        processes, and before anything is measured.
    """
    record, folder = workdir / f"evaluation{suffix}.json", workdir / "pictures"
    clips = evaluator.frames > 1
    wanted = pictures_wanted
    if clips:
        wanted = max(min(pictures_wanted, showing.CLIPS), videos_wanted)
        if videos_wanted:
            videos.check_encoder()

    def probe() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (workdir, folder):
            with tempfile.TemporaryFile(dir=place):
                pass

    on_first_process(workdir, probe)
    results: dict[str, Any] = {}
    shown = None
    for label, params in weights.items():
        results[label], shown = evaluator(params, wanted)
    oracle: dict[str, Any] = {}
    for result in results.values():
        oracle = _pop_oracle(result)
        if clips:
            oracle["per_frame"] = _pop_oracle(result["per_frame"])
    photographs = evaluator.photographs(list(weights.values())[-1]) if pictures_wanted else None
    report: dict[str, Any] = {
        "name": name,
        "step": step,
        "results": results,
        "oracle": {"name": ORACLE, "bits_a_patch": 24, **oracle},
        "judges": evaluator.judges.about(),
        "notes": evaluator.judges.notes(),
        "measured": {
            "split": "val",
            "source": data.val_source or data.source,
            "count": next(iter(results.values()))["count"],
            "unreadable": evaluator.broken,
            "frames": evaluator.frames,
            "shorter": evaluator.shorter,
            "stride": data.stride,
            "image_size": list(data.crop),
            "resize": f"short side to {data.eval_resize} pixels, {data.eval_filter}",
            "crop": data.eval_crop,
            "values": "8 bits a channel, mean over "
            + (
                "clips of the mean over a clip's frames; psnr_clip from a clip's mean squared error"
                if clips
                else "pictures"
            ),
            "dtype": jnp.dtype(evaluator._task.model.dtype).name,
            "backend": jax.default_backend(),
            "python": platform.python_version(),
            "versions": {p: metadata.version(p) for p in ("jax", "flax", "pillow", "numpy")},
        },
        "path": str(record),
        "pictures": [],
        "videos": [],
    }
    shape = evaluator._task.model.shape

    def place(kind: str, name: str, ending: str) -> pathlib.Path:
        path = workdir / kind / f"{name}_{step:07d}{suffix}.{ending}"
        report[kind].append(str(path))
        return path

    def write() -> None:
        if shown and pictures_wanted:
            grid = showing.picture(shown, shape.patch_size)
            pictures.save_png(place("pictures", "clips" if clips else "crops", "png"), grid)
        if photographs is not None:
            pictures.save_png(place("pictures", "photographs", "png"), photographs)
        if clips and pictures_wanted:
            lines = {name: list(enumerate(r["per_frame"]["psnr"])) for name, r in results.items()}
            lines[ORACLE] = list(enumerate(oracle["per_frame"]["psnr"]))
            path = place("pictures", "per_frame", "png")
            line_figure(path, lines, x="frame of the clip", y="PSNR (dB)")
        for number, movie in enumerate(showing.movies(shown, videos_wanted, shape.bits)):
            videos.write_mp4(place("videos", f"clip{number}", "mp4"), movie)
        write_atomic(record, (json.dumps(report, indent=2) + "\n").encode())

    on_first_process(workdir, write)
    return report


def on_first_process(workdir: pathlib.Path, action: Callable[[], None]) -> None:
    """Has process 0 write; what the system refuses is the same `UserError` on every process.

    Args:
      workdir: for the message.
      action: writes.

    Raises:
      UserError: the system refused.
    """
    problems = []
    if jax.process_index() == 0:
        try:
            action()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            problems.append(
                f"cannot write the evaluation into {workdir} ({reason}): make room there or allow "
                "writing, or copy the folder and evaluate the copy"
            )
    for problem in gather_strings(problems):
        raise UserError(problem)


def _pop_oracle(values: dict[str, Any]) -> dict[str, Any]:
    """Takes what is measured of the oracle out of `values`."""
    names = [name for name in values if name.startswith("oracle_")]
    return {name.removeprefix("oracle_"): values.pop(name) for name in names}
