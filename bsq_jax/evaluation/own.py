"""Metrics of the user's own, which ``config.eval.metrics`` names; see docs/extending/metric.md."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import OwnPart, parse_own
from bsq_jax.evaluation.catalog import FEATURE_METRICS, FRAME_METRICS, TOKEN_METRICS
from bsq_jax.evaluation.metric import FrameMetric, Row

_FORMAT = "{:.4g}"


def make_own_metrics(texts: Sequence[str]) -> tuple[FrameMetric, ...]:
    """The metrics that texts ``module:attribute(key=value)`` name.

    Each is a `FrameMetric`, or a function as one has. The name of a function is the key in the
    results; the first line of its docstring is the title in the table.

    Raises:
      UserError: one cannot be loaded, takes other arguments, or has the key of another metric.
    """
    found = tuple(_make(parse_own("eval.metrics", text)) for text in texts)
    keys = ["count", "per_frame", "tokens"]
    for metric in (*FRAME_METRICS, *found):
        keys += [metric.row.key, *([metric.of_clip.row.key] if metric.of_clip else [])]
    keys += [row.key for feature in FEATURE_METRICS for row in feature.rows]
    keys += [row.key for tokens in TOKEN_METRICS for row in tokens.rows]
    for metric in found:
        if keys.count(metric.row.key) > 1:
            raise UserError(
                f"eval.metrics: there is another metric with the name {metric.row.key!r}: give "
                "this one a name of its own"
            )
    return found


def _make(part: OwnPart) -> FrameMetric:
    loaded = part.load()
    if isinstance(loaded, FrameMetric):
        if part.arguments:
            raise part.error("a FrameMetric takes no arguments: name a function, or leave them out")
        return dataclasses.replace(loaded, function=_checked(part, loaded.function))
    function = part.bound("original", "reconstruction")
    title = (inspect.getdoc(loaded) or part.attribute).splitlines()[0].rstrip(".")
    row = Row(part.attribute, title.replace("{", "{{").replace("}", "}}"), _FORMAT)
    return FrameMetric(row, part.attribute, _checked(part, function))


def _checked(part: OwnPart, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function, which refuses to give anything but a number for each frame."""

    def checked(*arguments: jax.Array) -> jax.Array:
        values, wanted = jnp.asarray(function(*arguments)), arguments[-1].shape[:2]
        if values.shape != wanted:
            raise part.error(
                f"it returned shape {values.shape}: it must be [batch, time], here {wanted}, a "
                "value for each frame"
            )
        return values.astype(jnp.float32)

    return checked
