"""Parameters of discriminators from state dicts in the layout of the published PyTorch code.

That code keeps linear weights as [out, in] and convolutions as [out, in, *window]. Its sizes can be
read off the keys and shapes, so nothing has to be known beforehand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.discriminators.stylegan3d import WIDTHS
from bsq_jax.torch_import.tokenizer_layout import parameter_name

BUFFER = "resample_filter"  # the blur's constant taps


class UnknownKindError(UserError):
    """The arrays are of no discriminator that can be read."""


class _Entry(NamedTuple):
    """One parameter: where it goes, and its key and shape there."""

    path: str
    key: str
    shape: tuple[int, ...]


def from_torch_discriminator(
    state: Mapping[str, np.ndarray],
) -> tuple[str, dict[str, int], dict[str, Any]]:
    """Reads a discriminator's kind, sizes and parameters from a PyTorch state dict.

    Args:
      state: arrays by the names of the published code, such as ``b4.fc.weight``, with the
        names of wrappers in them or not (`parameter_name`); constant ``resample_filter`` buffers
        are left out.

    Returns:
      The kind, ``stylegan`` or ``stylegan3d``. Its sizes: of the former ``resolution``,
      ``channel_base`` and ``channel_max``; of the latter ``width`` and ``positions``, the product
      of frames, rows and columns after the last block. And the nested dict of float32 numpy arrays
      that the discriminator of that kind takes as ``params``.

    Raises:
      UnknownKindError: the state dict is of neither kind.
      UserError: a key is missing, not wanted, there twice or of another shape.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in state.items():
        key = parameter_name(name)
        if key in arrays:
            raise UserError(f"the state dict has '{key}' twice, with and without 'module.'")
        if key.rpartition(".")[2] != BUFFER:
            arrays[key] = array
    if any(key.startswith("conv_blocks.") for key in arrays):
        return _stylegan3d(arrays)
    if any(key.startswith("b4.") for key in arrays):
        return _stylegan(arrays)
    raise UnknownKindError(
        "the state dict is of no known discriminator: it has neither 'b4.fc.weight' (StyleGAN2) "
        "nor 'conv_blocks.0.skip_path.1.weight' (its variant for clips)"
    )


def _stylegan(arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, int], dict[str, Any]]:
    sides = [
        int(key[1:].partition(".")[0])
        for key in arrays
        if key.endswith(".fromrgb.weight") and key[1:].partition(".")[0].isdigit()
    ]
    if not sides:
        raise UserError("the state dict has no 'bR.fromrgb.weight' for any resolution R")
    side = max(sides)
    if side < 8 or side & (side - 1):
        raise UserError(
            f"the state dict has 'b{side}.fromrgb.weight', but resolutions are powers of two from 8"
        )
    resolutions = [side >> step for step in range(side.bit_length() - 3)]
    # A block's conv1 makes the channels of the next resolution.
    channels = {side: _size(arrays, f"b{side}.fromrgb.weight", 4)}
    for resolution in resolutions:
        channels[resolution // 2] = _size(arrays, f"b{resolution}.conv1.weight", 4)
    entries = [*_layer("fromrgb", f"b{side}.fromrgb", 3, channels[side], (1, 1))]
    for resolution in resolutions:
        before, after = channels[resolution], channels[resolution // 2]
        block = f"b{resolution}"
        entries += _layer(f"{block}/conv0", f"{block}.conv0", before, before, (3, 3))
        entries += _layer(f"{block}/conv1", f"{block}.conv1", before, after, (3, 3))
        entries.append(
            _Entry(f"{block}/skip/kernel", f"{block}.skip.weight", (after, before, 1, 1))
        )
    last = channels[4]
    entries += _layer("conv", "b4.conv", last + 1, last, (3, 3))
    entries += _layer("fc", "b4.fc", 16 * last, last)
    entries += _layer("out", "b4.out", last, 1)
    largest = max(channels.values())
    sizes = {
        "resolution": side,
        # The largest that gives these channels, where all of them are capped: any larger would do.
        "channel_base": max(count * resolution for resolution, count in channels.items()),
        "channel_max": largest,
    }
    for resolution, count in channels.items():
        if count != min(sizes["channel_base"] // resolution, largest):
            raise UserError(
                f"the state dict's channels at resolution {resolution} are {count}, which no "
                f"channel base and maximum give: this discriminator cannot be read"
            )
    return "stylegan", sizes, _take(arrays, entries)


def _stylegan3d(arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, int], dict[str, Any]]:
    width = _size(arrays, "input_conv.0.weight", 5)
    last = WIDTHS[-1] * width
    inputs = _size(arrays, "output_mlp.1.weight", 2, axis=1)
    positions = max(inputs // last, 1)
    window = (3, 3, 3)
    entries = [*_layer("input", "input_conv.0", 3, width, (1, 1, 1))]
    for index, (a, b) in enumerate(itertools.pairwise(WIDTHS)):
        before, after, key = a * width, b * width, f"conv_blocks.{index}"
        block = f"block{index}"
        entries += _layer(f"{block}/conv0", f"{key}.function_path.0", before, after, window)
        entries += _layer(f"{block}/conv1", f"{key}.function_path.3", after, after, window)
        entries.append(
            _Entry(f"{block}/skip/kernel", f"{key}.skip_path.1.weight", (after, before, 1, 1, 1))
        )
    entries += _layer("conv", "output_conv.0", last + 1, last, window)
    entries += _layer("fc", "output_mlp.1", positions * last, last)
    entries += _layer("out", "output_mlp.2", last, 1)
    return "stylegan3d", {"width": width, "positions": positions}, _take(arrays, entries)


def _layer(
    path: str, key: str, inputs: int, outputs: int, window: tuple[int, ...] = ()
) -> Iterator[_Entry]:
    """Kernel and bias of a convolution, or of a linear layer where there is no window."""
    yield _Entry(f"{path}/kernel", f"{key}.weight", (outputs, inputs, *window))
    yield _Entry(f"{path}/bias", f"{key}.bias", (outputs,))


def _size(arrays: Mapping[str, np.ndarray], key: str, rank: int, axis: int = 0) -> int:
    """A size that others follow from."""
    shape = np.shape(_get(arrays, key))
    if len(shape) != rank or not math.prod(shape):
        raise UserError(f"'{key}' has the shape {list(shape)} in the state dict: not a weight's")
    return shape[axis]


def _get(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        raise UserError(f"the state dict has no '{key}', which this discriminator needs")
    return arrays[key]


def _take(arrays: Mapping[str, np.ndarray], entries: list[_Entry]) -> dict[str, Any]:
    """The parameters by path; every array must be wanted."""
    params: dict[str, Any] = {}
    for entry in entries:
        array = np.asarray(_get(arrays, entry.key), np.float32)
        if array.shape != entry.shape:
            raise UserError(
                f"'{entry.key}' has the shape {list(array.shape)} in the state dict, "
                f"but the other arrays ask for {list(entry.shape)}"
            )
        if array.ndim > 1:
            array = np.moveaxis(array, (0, 1), (-1, -2))
        *folders, name = entry.path.split("/")
        tree = params
        for folder in folders:
            tree = tree.setdefault(folder, {})
        tree[name] = array
    rest = set(arrays) - {entry.key for entry in entries}
    if rest:
        raise UserError(f"the state dict has '{min(rest)}', which this discriminator does not")
    return params
