"""The sizes of ``data.sizes``: text to numbers, and what they clash with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from bsq_jax.config.values import pair

_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def is_size(text: str) -> bool:
    """Whether a text is HEIGHTxWIDTH in pixels, such as 192x320."""
    return _SIZE.fullmatch(text) is not None


def parse_sizes(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(height, width) of each text for which `is_size` holds."""
    matches = (_SIZE.fullmatch(text) for text in texts)
    return tuple((int(match[1]), int(match[2])) for match in matches if match)


def trained_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """(height, width) of the frames that parameters are made for and that training steps have."""
    return tuple(config.model.image_size), *parse_sizes(config.data.sizes)


def clashes(config: ConfigDict) -> Iterator[str]:
    """What does not fit together with ``data.sizes`` in a config, in words."""
    data, task = config.data, config.task
    if not data.sizes:
        if data.eval_crop == "bucket":
            yield "data.eval_crop=bucket needs data.sizes: name them, or take center or tiles"
        return
    sizes = parse_sizes(data.sizes)
    for size in sizes:
        if sizes.count(size) > 1:
            yield f"data.sizes has {size[0]}x{size[1]} twice"
    patch = pair(config.model.patch_size)
    for height, width in sizes:
        if height % patch[0] or width % patch[1]:
            yield (
                f"data.sizes has {height}x{width}, whose sides are no multiples of "
                f"model.patch_size {patch[0]}x{patch[1]}"
            )
    if task == "masked_lm":
        yield "data.sizes is for tokenizers and priors: a masked_lm has one size, leave it empty"
    if task == "prior" and not any(config.prior.reach):
        yield (
            "data.sizes is given, and a prior over whole tiles has one size: set prior.reach, or "
            "leave data.sizes empty"
        )
    if data.source.startswith("tokens:"):
        yield (
            f"data.sizes is given, and data.source={data.source} is a token set, which has one "
            "grid: read pictures, or leave data.sizes empty"
        )
