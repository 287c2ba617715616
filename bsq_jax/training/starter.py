"""The starter model: a tokenizer of photographs and its prior that come with the package.

They are an export in the folder ``bsq_jax/starter``, made by configs/starter.py; docs/starter.md is
its card.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bsq_jax
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training.saved_models import TOKENIZER_FOLDER, load_saved_model

NAME = "starter"
TAKEN = "no model is named: the starter model of bsq_jax is taken"
"""What is said then."""


def starter_folder() -> pathlib.Path:
    """The export that is taken where no model is named.

    Raises:
      UserError: this installation does not have it.
    """
    folder = pathlib.Path(bsq_jax.__file__).parent / NAME
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the starter model is missing from this installation ({folder}): name a model, or "
            "install bsq_jax again"
        )
    return folder


def unnamed_model() -> pathlib.Path:
    """`starter_folder`, and says once in the log that it is taken.

    Raises:
      UserError: as `starter_folder`.
    """
    folder = starter_folder()
    say_once(TAKEN)
    return folder


def starter_reconstruction() -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The starter tokenizer as a row of the pictures of evaluations.

    Returns:
      What to call it, and a function that reconstructs a picture uint8 ``[height, width, 3]`` of
      any size. Every process computes by itself, on one of its own devices.

    Raises:
      UserError: as `starter_folder`, or the model is damaged.
    """
    saved = load_saved_model(starter_folder() / TOKENIZER_FOLDER)
    config = saved.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    model, params = make_tokenizer(config), next(iter(saved.weights.values()))
    sides = model.shape.patch

    @jax.jit
    def step(params: Any, pixels: jax.Array) -> jax.Array:
        output: Any = model.apply({"params": params}, to_float(pixels))
        return to_uint8(output.pixels)

    def reconstruct(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        rows, columns = (-side % patch for side, patch in zip((height, width), sides, strict=True))
        filled = np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="edge")
        return np.asarray(step(params, jnp.asarray(filled)[None, None]))[0, 0, :height, :width]

    return f"starter, {model.shape.bits} bits", reconstruct
