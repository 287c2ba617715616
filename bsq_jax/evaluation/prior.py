"""What is measured of a prior: the bits that tokens take, as entropy and as coded bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.sharding import jit_on, replicated
from bsq_jax.data.tokens import measured_words
from bsq_jax.evaluation.loop import EvaluationLoop, HostBatch, Validation
from bsq_jax.evaluation.metric import Row
from bsq_jax.evaluation.report import Drawing, Wanted
from bsq_jax.evaluation.tables import unreadable_lines, value_lines
from bsq_jax.models.factory import Prior
from bsq_jax.models.prior.entropy_coder import Encoder

_ROWS = (
    Row("raw_bpp", "raw", "{:.4f}"),
    Row("entropy_bpp", "cross entropy", "{:.4f}"),
    Row("coded_bpp", "arithmetic coder", "{:.4f}"),
    Row("saved", "saved", "{:.1%}"),
)


class PriorTask(Protocol):
    """What is evaluated."""

    @property
    def model(self) -> Prior:
        """The network."""
        ...

    def load_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """Parameters that stay as they are, on every device."""
        ...

    def evaluate_step(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """``bits`` uint8 and ``logits`` int16, ``[batch, time, row, column, L]``, and ``cost``.

        The cost, float32 ``[batch, time]``, is the bits that each frame takes.
        """
        ...


class PriorEvaluator:
    """Measures parameters of a prior on a validation split, see `Evaluator`.

    Args:
      task: gives the evaluation step.
      validation: the examples.
      mesh: the run's mesh.
      batch_size: global; rounded up to a multiple of the number of shards.
      pixels: of a token, its patch.
      measured: on what, for the report, see `bsq_jax.data.tokens.measured`.
    """

    def __init__(
        self,
        task: PriorTask,
        validation: Validation,
        mesh: Mesh,
        *,
        batch_size: int,
        pixels: int,
        measured: Mapping[str, Any],
    ):
        self._loop = EvaluationLoop(validation, mesh, batch_size)
        self._pixels, self._measured = pixels, measured
        self._frozen = task.load_frozen(mesh)
        self._step = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))

    @property
    def frames(self) -> int:
        """See `Evaluator`."""
        return self._loop.frames

    def _compute(self, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        seen = {name: batch[name] for name in ("pixels", "bits", "frames") if name in batch}
        found: dict[str, jax.Array] = self._step(params, seen, self._frozen)
        return found

    def measure(self, params: Any, wanted: Wanted) -> dict[str, Any]:
        """Measures one set of parameters; there is nothing to draw.

        Returns:
          ``frames``, ``raw_bits``, ``entropy_bits`` (cross entropy) and ``coded_bytes`` (all
          frames in one run of the arithmetic coder) of all real frames together; ``saved``, the
          share of the raw bits that the coder saves; bits per pixel ``raw_bpp``, ``entropy_bpp``
          and ``coded_bpp``; ``per_frame``, the share saved by the index of the frame; and
          ``unreadable``, names of records.
        """
        del wanted
        lengths = _CodeLengths(self._loop.frames, self._pixels)
        result = self._loop(functools.partial(self._compute, params), [lengths])
        del result["count"]
        return result | {"unreadable": self._loop.unreadable}

    def describe(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """See `Evaluator`."""
        del results
        return {"measured": dict(self._measured)}

    def drawings(self, params: Any, results: Mapping[str, Any], wanted: Wanted) -> list[Drawing]:
        """None: there is nothing to draw."""
        del params, results, wanted
        return []


class _CodeLengths:
    """Bits of all real frames: raw, by the model's cross entropy, and coded.

    Args:
      frames: of the clips in a batch.
      pixels: of a token.
    """

    def __init__(self, frames: int, pixels: int):
        self._pixels = pixels
        self._costs, self._raw = np.zeros(frames), np.zeros(frames, np.int64)
        self._frames = self._tokens = 0
        self._coder = Encoder()

    def update(self, batch: HostBatch) -> None:
        found, real = batch.values, batch.real
        rows, columns, bits = found["bits"].shape[2:]  # of this batch: sizes may differ
        self._costs += np.sum(np.where(real, found["cost"].astype(np.float64), 0), axis=0)
        self._raw += np.sum(real, axis=0) * rows * columns * bits
        self._frames += int(np.sum(real))
        self._tokens += int(np.sum(real)) * rows * columns
        self._coder.write(found["bits"][real], found["logits"][real])

    def result(self) -> dict[str, Any]:
        raw, coded = int(self._raw.sum()), len(self._coder.result())
        pixels, entropy = self._tokens * self._pixels, float(self._costs.sum())
        per_frame = 1 - self._costs / np.maximum(self._raw, 1)
        return {
            "frames": self._frames,
            "raw_bits": raw,
            "entropy_bits": entropy,
            "coded_bytes": coded,
            "saved": 1 - 8 * coded / raw,
            "raw_bpp": raw / pixels,
            "entropy_bpp": entropy / pixels,
            "coded_bpp": 8 * coded / pixels,
            "per_frame": per_frame[self._raw > 0].tolist(),
        }


def prior_table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    lines = value_lines(_ROWS, report["results"], heading="bits per pixel")
    last = list(report["results"].values())[-1]
    what, place, how = measured_words(report["measured"])
    lines.append(
        f"{report['name']}, step {report['step']}: {last['frames']:,d} "
        f"frame{'s' * (last['frames'] != 1)} of {what} from "
        f"{place}, {how}"
    )
    if len(last["per_frame"]) > 1:
        shares = " ".join(f"{share:.1%}" for share in last["per_frame"])
        lines.append(f"saved, by index of the frame: {shares}")
    return "\n".join([*lines, *unreadable_lines(last["unreadable"])])
