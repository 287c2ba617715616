"""How few bits the tokens of a validation split take with a prior: as entropy and as real bytes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.clips import real_frames
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.sharding import (
    batch_shards,
    gather_strings,
    host_shard,
    jit_on,
    replicated,
    to_global,
)
from bsq_jax.core.text import aligned
from bsq_jax.data.batches import Batches
from bsq_jax.data.tokens import measured_words
from bsq_jax.evaluation.tokenizer import on_first_process
from bsq_jax.models.prior.entropy_coder import Encoder


class PriorEvaluator:
    """Measures parameters of a prior on a validation split, every example once."""

    def __init__(
        self,
        task: Any,
        make_batches: Callable[..., Batches],
        mesh: Mesh,
        *,
        batch_size: int,
        frames: int,
        pixels: tuple[int, int],
    ):
        """Prepares an evaluation.

        Args:
          task: gives the evaluation step.
          make_batches: the validation batches of a host, for the keywords ``global_batch``,
            ``shard_index`` and ``shard_count``.
          mesh: the run's mesh.
          batch_size: global; rounded up to what the mesh divides.
          frames: of the clips in a batch.
          pixels: (height, width) of a frame.
        """
        shards = batch_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        self._task, self._make_batches, self._mesh = task, make_batches, mesh
        self._frames, self._pixels = frames, pixels
        self._frozen = task.load_frozen(mesh)
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
        self._whole = jit_on(mesh, lambda tree: tree, out_shardings=replicated(mesh))

    def __call__(self, params: Any) -> dict[str, Any]:
        """Measures one set of parameters.

        Returns:
          ``frames``, ``raw_bits``, ``entropy_bits`` (cross entropy) and ``coded_bytes`` (all
          frames in one run of the arithmetic coder) of all real frames together; ``saved``, the
          share of the raw bits that the coder saves; bits a pixel ``raw_bpp``, ``entropy_bpp`` and
          ``coded_bpp``; ``per_frame``: the share saved by the index of the frame.
        """
        shard = host_shard(self._mesh, self._batch_size)
        batches = self._make_batches(
            global_batch=self._batch_size, shard_index=shard.index, shard_count=shard.count
        )
        shape = self._task.model.shape
        coder = Encoder()
        costs = np.zeros(self._frames)
        counts = np.zeros(self._frames, np.int64)
        for local in batches:
            batch = to_global({k: v for k, v in local.items() if k != "index"}, self._mesh)
            frames, mask = jax.device_get(self._whole((batch["frames"], batch["mask"])))
            shown = {name: batch[name] for name in ("pixels", "bits", "frames") if name in batch}
            output = self._step(params, shown, self._frozen)
            found = jax.device_get(output)
            real = real_frames(frames, self._frames) & (mask > 0)[:, None]
            costs += np.sum(np.where(real, found["cost"].astype(np.float64), 0), axis=0)
            counts += np.sum(real, axis=0)
            coder.write(found["bits"][real], found["logits"][real])
        broken = gather_strings(batches.stats()["broken_ids"])
        batches.close()
        total = int(counts.sum())
        if not total:
            raise UserError("no example was counted: check that the split is not empty")
        raw = total * shape.tokens * shape.bits
        pixels = total * self._pixels[0] * self._pixels[1]
        coded = len(coder.result())
        per_frame = 1 - costs / np.maximum(counts * shape.tokens * shape.bits, 1)
        return {
            "frames": total,
            "raw_bits": raw,
            "entropy_bits": float(costs.sum()),
            "coded_bytes": coded,
            "saved": 1 - 8 * coded / raw,
            "raw_bpp": raw / pixels,
            "entropy_bpp": float(costs.sum()) / pixels,
            "coded_bpp": 8 * coded / pixels,
            "per_frame": per_frame[counts > 0].tolist(),
            "unreadable": broken,
        }


def evaluate_prior(
    evaluator: PriorEvaluator,
    weights: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    name: str,
    step: int,
    measured: Mapping[str, Any],
    suffix: str = "",
) -> dict[str, Any]:
    """Evaluates each set of weights; process 0 writes ``evaluation.json``.

    Args:
      evaluator: the evaluator.
      weights: parameters by name, such as ``raw`` and ``ema``.
      workdir: folder of the run.
      name: the model's name, for the record.
      step: training step of the weights, for the record.
      measured: on what, for the record, see `bsq_jax.data.tokens.measured`.
      suffix: put before the ending of the file's name.

    Returns:
      The report that was written.

    Raises:
      UserError: the folder cannot be written to.
    """
    path = workdir / f"evaluation{suffix}.json"
    report = {
        "name": name,
        "step": step,
        "results": {label: evaluator(params) for label, params in weights.items()},
        "measured": dict(measured),
        "path": str(path),
        "pictures": [],
        "videos": [],
    }

    def write() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())

    on_first_process(workdir, write)
    return report


def prior_table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    results = report["results"]
    lines = [["bits a pixel", *results]]
    for key, title in (
        ("raw_bpp", "raw"),
        ("entropy_bpp", "cross entropy"),
        ("coded_bpp", "as bytes of the arithmetic coder"),
    ):
        lines.append([title, *(f"{result[key]:.4f}" for result in results.values())])
    lines.append(["saved", *(f"{result['saved']:.1%}" for result in results.values())])
    rows = aligned(lines)
    rows.insert(1, "-" * len(rows[0]))
    last = list(results.values())[-1]
    what, place, how = measured_words(report["measured"])
    rows.append(
        f"{report['name']}, step {report['step']}: {last['frames']:,d} frames of {what} from "
        f"{place}, {how}"
    )
    if len(last["per_frame"]) > 1:
        shares = " ".join(f"{share:.1%}" for share in last["per_frame"])
        rows.append(f"saved by the index of the frame: {shares}")
    if last["unreadable"]:
        rows.append(f"not readable and left out: {', '.join(last['unreadable'])}")
    return "\n".join(rows)
