"""Weights of a tokenizer for one that differs in frames, picture size, causality or window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.position_tables import fit_temporal, interpolate_spatial
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.training.saved_models import SavedModel

# Keys of `model` in which the weights' own config may differ from the one they are adapted to.
ADAPTABLE = ("frames", "image_size", "causality", "window")
_LEARNED = ("learned", "window")  # positions


def adapt(initial: SavedModel, config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Fits weights to a model that differs from theirs in the keys of `ADAPTABLE` alone.

    What an image model does with one frame, its video model does too, whatever the positions. Frame
    by frame it starts as the image model if ``model.window`` is 1 and the positions are learned
    (they start at zero along time) or rotary (only distances inside a frame are left). Fixed sines
    along time (``sincos``) are there from the second frame on, and the model has to learn them.

    Args:
      initial: of `load_saved_model`.
      config: of the model that is to have them.

    Returns:
      The sets of weights, and for each key that differs what was done, in words.

    Raises:
      UserError: the weights do not fit their own config.
    """
    have, want = (make_tokenizer(c).shape for c in (initial.config, config))
    weights = dict(initial.weights)
    if want.positions in _LEARNED and (have.frames, have.table) != (want.frames, want.table):
        for name in {"raw", "ema"} & weights.keys():
            weights[name] = _adapt_positions(weights[name], have, want)
    said = []
    for key in ADAPTABLE:
        values = (settings.model[key] for settings in (initial.config, config))
        before, after = ("x".join(map(str, np.ravel(value))) for value in values)
        if before != after:
            said.append(f"model.{key} {before} -> {after}{_what_is_done(key, have, want)}")
    return weights, said


def _adapt_positions(params: Any, have: TokenizerShape, want: TokenizerShape) -> dict[str, Any]:
    """Parameters with learned positions for another number of frames, another grid, or both."""
    flat = flatten_dict(params)

    def times(shape: TokenizerShape) -> int:
        frames: int = shape.token_frames(shape.frames)
        return frames

    for half in ("encoder", "decoder"):
        where = (half, "trunk", "positions")
        spatial, temporal = flat.get((*where, "spatial")), flat.pop((*where, "temporal"), None)
        width = have.half(half).width
        wanted = (math.prod(have.table), width), (times(have), width) if have.frames > 1 else ()
        if (np.shape(spatial), () if temporal is None else temporal.shape) != wanted:
            raise UserError(f"the weights do not fit their own config: see {'/'.join(where)}")
        if temporal is not None and want.frames == 1:
            spatial = spatial + temporal[:1]
        flat[*where, "spatial"] = interpolate_spatial(spatial, have.table, want.table)
        if want.frames > 1:
            flat[*where, "temporal"] = fit_temporal(temporal, times(want), width)
    return unflatten_dict(flat)


def _what_is_done(key: str, have: TokenizerShape, want: TokenizerShape) -> str:
    """How weights of one shape come to serve another that differs in `key`, after a colon."""
    if key not in ("frames", "image_size"):
        return ""
    if want.positions not in _LEARNED:
        return f": {want.positions} positions are computed"
    if key == "image_size" and want.positions == "window":
        return ": spatial positions are those of a window at any size"
    if key == "image_size":
        one, other = ("x".join(map(str, shape.grid)) for shape in (have, want))
        return f": spatial positions {one} -> {other} interpolated"
    if have.frames == 1:
        return ": temporal positions start at zero"
    if want.frames == 1:
        return ": the first temporal position is added to the spatial ones"
    if want.frames < have.frames:
        return f": the first {want.frames} temporal positions"
    return f": temporal positions after {have.frames} start as the last"
