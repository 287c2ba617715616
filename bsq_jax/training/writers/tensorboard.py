"""What TensorBoard shows of a run: curves, histograms, pictures, hyper-parameters, the config."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tensorboardX
from ml_collections import ConfigDict
from tensorboardX.summary import hparams

from bsq_jax.config.values import flatten
from bsq_jax.training.writers.writer import Values

# What the columns of TensorBoard's HPARAMS tab compare, by the task of the runs.
_COMPARED = {
    "tokenizer": ("psnr", "ssim", "lpips"),
    "prior": ("coded_bpp",),
    "masked_lm": ("cross_entropy", "accuracy"),
}


class TensorBoard:
    """Writes event files, for ``tensorboard --logdir`` of the folder that has the runs.

    Args:
      folder: of the event files.
      start_step: the step that the run resumes from; TensorBoard hides what was written after it.
    """

    def __init__(self, folder: pathlib.Path, start_step: int = 0):
        purge = start_step + 1 if start_step else 0
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def describe(self, config: ConfigDict) -> None:
        """Writes all settings, as a text and as hyper-parameters.

        Args:
          config: a finalised config.
        """
        settings = dict(flatten(config))
        lines = "\n".join(f"    {key} = {value}" for key, value in settings.items())
        self._writer.add_text("config", lines)  # indented: Markdown's verbatim text
        weights = "ema" if config.optimizer.ema else "raw"
        compared = dict.fromkeys((f"val_{weights}/{name}" for name in _COMPARED[config.task]), 0.0)
        values = {key: _hyper_parameter(value) for key, value in settings.items()}
        experiment, session, _ = hparams(values, compared)  # the third says that it has ended
        for summary in (experiment, session):
            self._writer.file_writer.add_summary(summary)

    def write(self, step: int, prefix: str, values: Values) -> None:
        """Adds points to curves, and the distributions of arrays.

        What is not finite is left out, as TensorBoard cannot draw it.

        Args:
          step: the step they belong to.
          prefix: their group; the tag of a curve is ``prefix/name``.
          values: by name.
        """
        for name, value in values.items():
            if not np.isfinite(value).all():
                continue
            if isinstance(value, float):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
            else:
                self._writer.add_histogram(f"{prefix}/{name}", value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 ``[height, width, 3]``; a name has a slider of steps."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes what is held back to the file."""
        self._writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes the file."""
        self._writer.close()


def _hyper_parameter(value: Any) -> bool | float | str:
    """The value as one of the types that TensorBoard knows."""
    return value if isinstance(value, bool | int | float) else str(value)
