"""What training from Python gives back."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.coding.codec import Codec
from bsq_jax.evaluation.report import weight_sets
from bsq_jax.inference.generator import Generator
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training.saved_models import TOKENIZER_FOLDER
from bsq_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainedRun:
    """A run that has done all its steps, as `bsq_jax.train` returns it.

    Attributes:
      config: the complete config, locked.
      workdir: folder of the run, which `Tokenizer.load` and the commands take.
      state: the last state, on the devices of the run: ``step``, ``params``, ``ema``, ``opt_state``
        and so on.
      report: of the evaluation of that state, what ``evaluation.json`` in the workdir holds:
        ``results`` has a dict of metrics for each set of weights, ``raw`` and ``ema``.
      history: the records of ``metrics.jsonl`` from step 1 on, also of a run that was resumed:
        dicts with ``step``, ``time`` in seconds since 1970, ``prefix`` (``train``, ``val_raw`` or
        ``val_ema``) and the metrics; None stands for what is not finite. Empty on all processes but
        the first.
    """

    config: ConfigDict
    workdir: pathlib.Path
    state: TrainState
    report: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """Training steps done."""
        return int(self.state.step)

    @property
    def weights(self) -> dict[str, Any]:
        """The parameters by name: ``raw``, and ``ema`` where they were averaged.

        Each is a nested dict of arrays on the devices of the run.
        """
        return weight_sets(self.state.params, self.state.ema)

    def curve(self, metric: str, prefix: str = "train") -> tuple[list[int], list[float]]:
        """Steps and values of a metric, to be plotted.

        Args:
          metric: such as ``loss`` or ``psnr``, see docs/metrics.md.
          prefix: ``train``, ``val_raw`` or ``val_ema``.

        Returns:
          Two lists of one length; empty if no record has a finite value of it.
        """
        points = [
            (record["step"], record[metric])
            for record in self.history
            if record["prefix"] == prefix and record.get(metric) is not None
        ]
        return [step for step, _ in points], [value for _, value in points]

    def tokenizer(self, *, weights: str = "auto", dtype: str | None = None) -> Tokenizer:
        """The tokenizer that was trained, or that of the tokens that were modelled.

        Args:
          weights: ``ema``, ``raw``, or ``auto`` for the averaged ones where there are some.
          dtype: as for `Tokenizer.load`.

        Raises:
          UserError: there are no such weights.
        """
        inside = self.workdir / TOKENIZER_FOLDER
        folder = self.workdir if self.config.task == "tokenizer" else inside
        return Tokenizer.load(folder, weights=weights, dtype=dtype)

    def codec(self, *, weights: str = "auto") -> Codec:
        """The codec of a prior and its tokenizer, or of a tokenizer alone; as `Codec.load`.

        Args:
          weights: as in `tokenizer`.

        Raises:
          UserError: the run has trained a masked language model, or there are no such weights.
        """
        return Codec.load(self.workdir, weights=weights)

    def generator(self, *, weights: str = "auto") -> Generator:
        """The masked language model with its tokenizer; as `Generator.load`.

        Args:
          weights: as in `tokenizer`.

        Raises:
          UserError: the run has trained another model, or there are no such weights.
        """
        return Generator.load(self.workdir, weights=weights)

    def __repr__(self) -> str:
        """Task, step and folder in one line."""
        return f"<TrainedRun of a {self.config.task}, step {self.step}, in {self.workdir}>"


def read_history(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a workdir's ``metrics.jsonl``; none where there is no such file."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
