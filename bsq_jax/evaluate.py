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
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax import metrics
from bsq_jax.core import checksums, pictures
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import (
    HostShard,
    batch_shards,
    gather_strings,
    host_shard,
    replicated,
    to_global,
)
from bsq_jax.data import transforms
from bsq_jax.data.pipeline import DataConfig, eval_batches, eval_examples
from bsq_jax.judges import Judges, Judging
from bsq_jax.tasks.tokenizer import TokenizerTask

# Rows of the table: key, title, format.
_ROWS = (
    ("psnr", "PSNR (dB)", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("ms_ssim", "MS-SSIM", "{:.4f}"),
    ("lpips", "LPIPS (AlexNet)", "{:.4f}"),
    ("fid", "FID (Inception-v3)", "{:.2f}"),
    ("frechet_vgg16", "Frechet distance, VGG16 features", "{:.2f}"),
    ("inception_score", "Inception score", "{:.2f}"),
    ("precision", "precision (k={k})", "{:.3f}"),
    ("recall", "recall (k={k})", "{:.3f}"),
    ("fvd", "FVD (I3D)", "{:.2f}"),
    ("codes_used", "different codes", "{:,d}"),
    ("usage", "  of the most there can be", "{:.1%}"),
    ("bit_entropy", "entropy of a bit", "{:.3f}"),
)
ORACLE = "one colour a patch"
_PHOTOGRAPHS = 3  # whole pictures shown


class Evaluator:
    """Measures parameters on a validation split.

    Every example counts once, whatever the batch size and the number of hosts: values are kept for
    each example, padding and unreadable files are masked out, and sums are float64.
    """

    def __init__(
        self,
        task: TokenizerTask,
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
        # Replicated results: every host then holds the values of all examples.
        self._step = jax.jit(task.evaluate_step, out_shardings=replicated(mesh))
        self._whole = jax.jit(lambda batch: batch, out_shardings=replicated(mesh))
        self.judges = Judges(
            judging or Judging(),
            mesh,
            clip=(1, *data.crop),  # examples are images
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
            output = self._step(params, batch)
            shown = self.judges.look(batch["pixels"], output["reconstruction"])
            yield jax.device_get((self._whole(batch), output, shown))
        self.broken = gather_strings(batches.stats()["broken_ids"])
        batches.close()

    def __call__(self, params: Any, pictures_wanted: int = 0) -> tuple[dict[str, Any], Any]:
        """Measures one set of parameters.

        Args:
          params: parameters of the task's model, on the mesh.
          pictures_wanted: how many examples to return for looking at.

        Returns:
          ``(result, shown)``: the means by name with ``count`` and the code usage; and a pair of
          uint8 arrays ``[example, height, width, 3]``, originals and reconstructions (first
          frames). Names that begin with ``oracle_`` are of the best one colour a patch.
        """
        mean = metrics.MeanAccumulator()
        usage = metrics.CodeUsage(self._task.model.shape.bits)
        shown: list[tuple[np.ndarray, np.ndarray]] = []
        count = 0
        seen = self.judges.begin()
        for batch, output, judged in self._run(params):
            reconstruction, bits = output.pop("reconstruction"), output.pop("bits")
            mean.update({**output, **judged["values"]}, batch["mask"])
            seen.update(judged, batch)
            usage.update(bits, batch["mask"])
            count += int(np.sum(batch["mask"] > 0))
            kept = np.flatnonzero(batch["mask"] > 0)
            shown += [(batch["pixels"][i, 0], reconstruction[i, 0]) for i in kept]
            del shown[pictures_wanted:]
        result = {**mean.result(), **self.judges.result(seen), **usage.result(), "count": count}
        pair = [np.stack(rows) for rows in zip(*shown, strict=True)] if shown else None
        return result, pair

    def photographs(self, params: Any) -> np.ndarray | None:
        """A picture of whole validation photographs, coded tile by tile.

        Returns:
          uint8 ``[height, width, 3]``: originals, reconstructions and the best one-colour-per-patch
          pictures; None where no photograph is readable. The same on every host.
        """
        source = self._examples.source
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
            rows, columns = image.shape[0] // height, image.shape[1] // width
            originals.append(
                transforms.center_crop(image, (rows * height, max(columns, 1) * width))
            )
            if len(originals) == _PHOTOGRAPHS:
                break
        if not originals:
            return None
        reconstructions = [self._reconstruct_tiles(params, image) for image in originals]
        oracle = [_best_one_colour(image, self._task.model.shape.patch_size) for image in originals]
        sides = [max(image.shape[i] for image in originals) for i in (0, 1)]
        rows_ = [
            np.stack([_centre(image, sides) for image in row])
            for row in (originals, reconstructions, oracle)
        ]
        labels = ["original", f"{self._task.model.shape.bits} bits a patch", "24 bits: one colour"]
        return pictures.grid(rows_, labels=labels, columns=_PHOTOGRAPHS)

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
            batch = {
                "pixels": padded[start : start + local],
                "mask": np.ones(local, np.float32),
                "index": np.zeros(local, np.int64),
            }
            output = self._step(params, to_global(batch, self._mesh))
            done.append(jax.device_get(output["reconstruction"])[: len(chunk)])
        rows = image.shape[0] // height
        return rearrange(
            np.concatenate(done), "(a b) 1 h w c -> (a h) (b w) c", a=rows
        )  # fmt: skip


def _best_one_colour(image: np.ndarray, patch: int) -> np.ndarray:
    mean = metrics.patch_mean(image[None, None], patch)
    return np.rint(np.asarray(mean[0, 0])).astype(np.uint8)


def _centre(image: np.ndarray, sides: list[int]) -> np.ndarray:
    """The picture in the middle of a white one of the given height and width."""
    canvas = np.full((*sides, 3), 255, np.uint8)
    top, left = ((side - have) // 2 for side, have in zip(sides, image.shape[:2], strict=True))
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


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
    suffix: str = "",
) -> dict[str, Any]:
    """Evaluates each set of weights; writes ``evaluation.json`` and pictures (process 0 alone).

    Args:
      evaluator: the evaluator.
      weights: parameters by name, such as ``raw`` and ``ema``; pictures show the last.
      workdir: folder of the run.
      name: the model's name, for the record.
      step: training step of the weights, for the record and the names of the pictures.
      data: how was measured, for the record.
      pictures_wanted: examples in the grid; 0 for no pictures at all.
      suffix: put before the ending of all file names, to keep evaluations on other data apart.

    Returns:
      The report that was written: a result for each set of weights under
      ``results``, how it was measured under ``measured``, and the paths under ``pictures``.

    Raises:
      UserError: the folder cannot be written to; on all processes, and before anything is measured.
    """
    record, folder = workdir / f"evaluation{suffix}.json", workdir / "pictures"

    def probe() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (workdir, folder):
            with tempfile.TemporaryFile(dir=place):
                pass

    _write(workdir, probe)
    results: dict[str, Any] = {}
    shown = None
    for label, params in weights.items():
        results[label], shown = evaluator(params, pictures_wanted)
    oracle = {}
    for result in results.values():
        names = [name for name in result if name.startswith("oracle_")]
        oracle = {name.removeprefix("oracle_"): result.pop(name) for name in names}
    photographs = evaluator.photographs(list(weights.values())[-1]) if pictures_wanted else None
    report = {
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
            "image_size": list(data.crop),
            "resize": f"short side to {data.eval_resize} pixels, {data.eval_filter}",
            "crop": data.eval_crop,
            "values": "8 bits a channel, mean over pictures of each picture's value",
            "backend": jax.default_backend(),
            "python": platform.python_version(),
            "versions": {p: metadata.version(p) for p in ("jax", "flax", "pillow", "numpy")},
        },
        "path": str(record),
        "pictures": [],
    }

    def write() -> None:
        if shown is not None:
            patch = evaluator._task.model.shape.patch_size
            oracle_row = np.stack([_best_one_colour(image, patch) for image in shown[0]])
            grid = pictures.grid(
                [*shown, oracle_row], labels=["original", "reconstruction", ORACLE]
            )
            _save(report, folder / f"crops_{step:07d}{suffix}.png", grid)
        if photographs is not None:
            _save(report, folder / f"photographs_{step:07d}{suffix}.png", photographs)
        checksums.write_atomic(record, (json.dumps(report, indent=2) + "\n").encode())

    _write(workdir, write)
    return report


def _write(workdir: pathlib.Path, action: Callable[[], None]) -> None:
    """Has process 0 write; what the system refuses is the same `UserError` on every process."""
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


def _save(report: dict[str, Any], path: pathlib.Path, picture: np.ndarray) -> None:
    pictures.save_png(path, picture)
    report["pictures"].append(str(path))


def table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    results = report["results"]
    columns = [*results, report["oracle"]["name"]]
    lines = [["", *columns]]
    k = report["judges"].get("neighbours", {}).get("k")
    for key, title, template in _ROWS:
        if not any(key in result for result in results.values()):
            continue  # a line below says why
        cells = [template.format(r[key]) if key in r else "-" for r in results.values()]
        oracle = report["oracle"].get(key)
        lines.append(
            [title.format(k=k), *cells, template.format(oracle) if oracle is not None else "-"]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rows.insert(1, "-" * len(rows[0]))
    measured = report["measured"]
    side = "x".join(map(str, measured["image_size"]))
    rows.append(
        f"{report['name']}, step {report['step']}: {measured['count']} crops of {side} "
        f"({measured['crop']}) from {measured['source']} ({measured['split']}), "
        f"{measured['resize']}"
    )
    tokens = next(iter(results.values()))["tokens"]
    rows.append(f"there can be at most as many different codes as tokens, {tokens:,d}, and 2^bits")
    if "ms_ssim" not in next(iter(results.values())):
        rows.append(f"MS-SSIM needs pictures of at least {metrics.MS_SSIM_MIN_SIDE} pixels a side")
    rows += report["notes"]
    if measured["unreadable"]:
        rows.append(f"not readable and left out: {', '.join(measured['unreadable'])}")
    return "\n".join(rows)
