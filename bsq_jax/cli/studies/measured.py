"""Trainings in this process whose measurements are kept: those that are done are not done again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config import from_json, to_json
from bsq_jax.config.values import differing_keys
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training import train_run

SETTINGS, MEASURED = "study_settings.json", "study_measured.json"


def measured(
    config: ConfigDict,
    folder: pathlib.Path,
    measure: Callable[[Tokenizer], dict[str, Any]],
    **asked: int,
) -> dict[str, Any]:
    """Trains a tokenizer and measures it, unless the folder has what was measured.

    A training that was stopped goes on.

    Args:
      config: a finalised config.
      folder: becomes the workdir of the training.
      measure: what is done with the trained model; its result is kept as JSON.
      asked: what the result depends on besides the config; with other values it is measured anew.

    Returns:
      What `measure` returned, now or then, as JSON has it: keys are text.

    Raises:
      UserError: the folder has a training with other settings, or the training failed.
      SystemExit: it was stopped by a signal, and is saved.
    """
    wanted, before = to_json(config), _read(folder / SETTINGS)
    if before:  # which an older version may have written
        before = to_json(from_json(before, str(folder / SETTINGS)))
    if before and (differ := differing_keys(before, wanted)):
        raise UserError(f"{folder} has other settings ({differ[0]}): give another --workdir")
    kept = _read(folder / MEASURED)
    if not kept or kept["asked"] != asked:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / SETTINGS, wanted)
        if status := train_run.train(config, folder):
            raise SystemExit(status)
        _write(folder / MEASURED, {"asked": asked, "found": measure(Tokenizer.load(folder))})
        kept = _read(folder / MEASURED)
    found: dict[str, Any] = kept["found"]
    return found


def frame_psnr(pixels: np.ndarray, made: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame, float64 ``[batch, time]``; at most 148 dB.

    Args:
      pixels: uint8 ``[batch, time, height, width, 3]``.
      made: its reconstruction, likewise.
    """
    error = np.mean(np.square(pixels.astype(np.float64) - made), axis=(2, 3, 4))
    psnr: np.ndarray = 10 * np.log10(255**2 / np.maximum(error, 1e-10))
    return psnr


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What `_write` wrote; empty where there is no file."""
    return json.loads(path.read_bytes()) if path.exists() else {}


def _write(path: pathlib.Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())
