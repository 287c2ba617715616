"""Inception-v3 as the Frechet Inception distance and the Inception score use it.

It is the network of the TensorFlow graph ``inception-2015-12-05`` (Szegedy et al. 2015), whose
weights circulate for PyTorch as ``pt_inception-2015-12-05-6726825d.pth``. Against the Inception-v3
of torchvision it has 1008 classes, average pools that leave padding out of the mean, and a maximum
pool in its last block. Batch normalization is folded into the convolutions when the weights
are read, which leaves convolutions, ReLUs and pools.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.evaluation.networks.layers import average_unpadded, conv, fold, max_pool, resize
from bsq_jax.torch_import.torch_file import read_torch_file

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
WHERE = f"get {WEIGHTS} from github.com/mseitzer/pytorch-fid/releases"
SIDE = 299  # pictures are resized to SIDE x SIDE
CLASSES = 1008
FEATURES = 2048

Params = Mapping[str, Mapping[str, Any]]


class Inception(NamedTuple):
    """Outputs of the network.

    Attributes:
      pool: float32 [batch, time, 2048], the last feature map averaged over space: the features of
        the Frechet Inception distance (Heusel et al. 2017).
      logits: float32 [batch, time, 1008], the scores of the classes; see `inception` on the bias.
    """

    pool: jax.Array
    logits: jax.Array


@dataclasses.dataclass(frozen=True)
class _Unit:
    """Convolution, batch normalization and ReLU, by its name in the file."""

    name: str
    window: tuple[int, int]
    outputs: int
    stride: int = 1
    padding: str = "SAME"


def _halve(net: jax.Array) -> jax.Array:
    return max_pool(net, (3, 3), (2, 2), "VALID")


def _neighbours_max(net: jax.Array) -> jax.Array:
    return max_pool(net, (3, 3), (1, 1), "SAME")


# A branch is a chain of units, pools, and forks: units of one input, their outputs concatenated.
_Step = _Unit | tuple[_Unit, ...] | Callable[[jax.Array], jax.Array]
_Branches = tuple[tuple[_Step, ...], ...]


def _block_a(pooled: int) -> _Branches:
    return (
        (_Unit("branch1x1", (1, 1), 64),),
        (_Unit("branch5x5_1", (1, 1), 48), _Unit("branch5x5_2", (5, 5), 64)),
        (
            _Unit("branch3x3dbl_1", (1, 1), 64),
            _Unit("branch3x3dbl_2", (3, 3), 96),
            _Unit("branch3x3dbl_3", (3, 3), 96),
        ),
        (average_unpadded, _Unit("branch_pool", (1, 1), pooled)),
    )


def _block_b() -> _Branches:
    return (
        (_Unit("branch3x3", (3, 3), 384, 2, "VALID"),),
        (
            _Unit("branch3x3dbl_1", (1, 1), 64),
            _Unit("branch3x3dbl_2", (3, 3), 96),
            _Unit("branch3x3dbl_3", (3, 3), 96, 2, "VALID"),
        ),
        (_halve,),
    )


def _block_c(width: int) -> _Branches:
    return (
        (_Unit("branch1x1", (1, 1), 192),),
        (
            _Unit("branch7x7_1", (1, 1), width),
            _Unit("branch7x7_2", (1, 7), width),
            _Unit("branch7x7_3", (7, 1), 192),
        ),
        (
            _Unit("branch7x7dbl_1", (1, 1), width),
            _Unit("branch7x7dbl_2", (7, 1), width),
            _Unit("branch7x7dbl_3", (1, 7), width),
            _Unit("branch7x7dbl_4", (7, 1), width),
            _Unit("branch7x7dbl_5", (1, 7), 192),
        ),
        (average_unpadded, _Unit("branch_pool", (1, 1), 192)),
    )


def _block_d() -> _Branches:
    return (
        (_Unit("branch3x3_1", (1, 1), 192), _Unit("branch3x3_2", (3, 3), 320, 2, "VALID")),
        (
            _Unit("branch7x7x3_1", (1, 1), 192),
            _Unit("branch7x7x3_2", (1, 7), 192),
            _Unit("branch7x7x3_3", (7, 1), 192),
            _Unit("branch7x7x3_4", (3, 3), 192, 2, "VALID"),
        ),
        (_halve,),
    )


def _block_e(pool: Callable[[jax.Array], jax.Array]) -> _Branches:
    return (
        (_Unit("branch1x1", (1, 1), 320),),
        (
            _Unit("branch3x3_1", (1, 1), 384),
            (_Unit("branch3x3_2a", (1, 3), 384), _Unit("branch3x3_2b", (3, 1), 384)),
        ),
        (
            _Unit("branch3x3dbl_1", (1, 1), 448),
            _Unit("branch3x3dbl_2", (3, 3), 384),
            (_Unit("branch3x3dbl_3a", (1, 3), 384), _Unit("branch3x3dbl_3b", (3, 1), 384)),
        ),
        (pool, _Unit("branch_pool", (1, 1), 192)),
    )


_STEM: _Branches = (
    (
        _Unit("Conv2d_1a_3x3", (3, 3), 32, 2, "VALID"),
        _Unit("Conv2d_2a_3x3", (3, 3), 32, 1, "VALID"),
        _Unit("Conv2d_2b_3x3", (3, 3), 64),
        _halve,
        _Unit("Conv2d_3b_1x1", (1, 1), 80),
        _Unit("Conv2d_4a_3x3", (3, 3), 192, 1, "VALID"),
        _halve,
    ),
)
# In order; the key is what the names of the units begin with in the file.
_NETWORK: dict[str, _Branches] = {
    "": _STEM,
    "Mixed_5b.": _block_a(32),
    "Mixed_5c.": _block_a(64),
    "Mixed_5d.": _block_a(64),
    "Mixed_6a.": _block_b(),
    "Mixed_6b.": _block_c(128),
    "Mixed_6c.": _block_c(160),
    "Mixed_6d.": _block_c(160),
    "Mixed_6e.": _block_c(192),
    "Mixed_7a.": _block_d(),
    "Mixed_7b.": _block_e(average_unpadded),
    "Mixed_7c.": _block_e(_neighbours_max),
}


def _block(params: Params, prefix: str, branches: _Branches, net: jax.Array) -> jax.Array:
    """The branches of one block, concatenated."""

    def unit(unit: _Unit, net: jax.Array) -> jax.Array:
        return jax.nn.relu(conv(params[prefix + unit.name], net, unit.stride, unit.padding))

    outputs = []
    for branch in branches:
        end = net
        for step in branch:
            if isinstance(step, _Unit):
                end = unit(step, end)
            elif isinstance(step, tuple):
                end = jnp.concatenate([unit(each, end) for each in step], -1)
            else:
                end = step(end)
        outputs.append(end)
    return jnp.concatenate(outputs, -1)


def _kernels() -> dict[str, tuple[int, ...]]:
    """[height, width, in, out] of every unit, by its full name."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for prefix, branches in _NETWORK.items():
        total = 0
        for branch in branches:
            width = inputs
            for step in branch:
                if not isinstance(step, _Unit | tuple):
                    continue  # a pool
                units = step if isinstance(step, tuple) else (step,)
                for unit in units:
                    shapes[prefix + unit.name] = (*unit.window, width, unit.outputs)
                width = sum(unit.outputs for unit in units)
            total += width
        inputs = total
    return shapes


def load_inception(path: str | os.PathLike[str]) -> dict[str, dict[str, np.ndarray]]:
    """Weights from a PyTorch file, ready for `inception`. Nothing is ever downloaded.

    Args:
      path: ``pt_inception-2015-12-05-6726825d.pth``, or another file whose state dict has its keys.

    Returns:
      ``{unit: {"kernel": float32 [height, width, in, out], "bias": float32 [out]}}`` on the host.

    Raises:
      UserError: no path, no such file, or a file without these weights; the message says where
        people get them, or names the key.
    """
    if not os.fspath(path):
        raise UserError(f"the Inception-v3 weights are missing: give the path of a file; {WHERE}")
    file = local_path(path)
    if not file.is_file():
        raise UserError(f"there is no file {file} with Inception-v3 weights; {WHERE}")
    state = read_torch_file(file)
    if not isinstance(state, Mapping):
        raise UserError(f"{file} holds no state dict of Inception-v3; {WHERE}")
    try:
        return from_torch_state(state)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_torch_state(state: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Parameters of `inception` from a PyTorch state dict; `load_inception` describes them.

    Args:
      state: arrays by key, such as ``Mixed_5b.branch1x1.conv.weight`` [out, in, height, width],
        ``Mixed_5b.branch1x1.bn.running_var`` [out] and ``fc.weight`` [1008, 2048]. Keys that this
        network does not need, such as those of the auxiliary classifier, are ignored.

    Raises:
      UserError: a key is missing, or its array has another shape or values that are not finite.
    """
    params = {}
    for unit, (height, width, inputs, outputs) in _kernels().items():
        weight = _array(state, f"{unit}.conv.weight", (outputs, inputs, height, width))
        scale, bias, mean, variance = (
            _array(state, f"{unit}.bn.{name}", (outputs,))
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        if (variance < 0).any():
            raise UserError(f"key {unit}.bn.running_var of Inception-v3 holds negative values")
        params[unit] = fold(weight.transpose(2, 3, 1, 0), mean, variance, bias, scale)
    params["fc"] = {
        "kernel": _array(state, "fc.weight", (CLASSES, FEATURES)).T.astype(np.float32),
        "bias": _array(state, "fc.bias", (CLASSES,)).astype(np.float32),
    }
    return params


def _array(state: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a key in float64, in which folding loses nothing that float32 shows."""
    if key not in state:
        raise UserError(f"key {key} of Inception-v3 is missing; {WHERE}")
    value = state[key]
    if not isinstance(value, np.ndarray) or value.shape != shape:
        found = getattr(value, "shape", type(value).__name__)
        raise UserError(f"key {key} of Inception-v3 should have shape {shape}, not {found}")
    array = value.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"key {key} of Inception-v3 holds NaN or infinite values")
    return array


def inception(params: Params, pixels: jax.Array, *, bias: bool = False) -> Inception:
    """Features and class scores of pictures; clips are taken frame by frame.

    Pictures are resized to 299x299 bilinearly with half-pixel centres and without antialiasing, as
    pytorch-fid does. All arithmetic is in float32, on accelerators too.

    The Inception score is defined by its first program (Salimans et al. 2016), which multiplies by
    the matrix of the classifier and forgets its bias; torch-fidelity, StyleGAN and others follow
    it, so this is what the logits are unless asked otherwise.

    Args:
      params: from `load_inception`.
      pixels: [batch, time, height, width, 3], floats in [-1, 1].
      bias: add the classifier's bias to the logits, which makes them the network's own.

    Raises:
      UserError: another number of axes or colours.
    """
    if pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise UserError(
            f"pixels of shape {list(pixels.shape)}: [batch, time, height, width, 3] is needed"
        )
    batch, time = pixels.shape[:2]
    net = pixels.astype(jnp.float32).reshape(batch * time, *pixels.shape[2:])
    net = resize(net, SIDE)
    for prefix, branches in _NETWORK.items():
        net = _block(params, prefix, branches, net)
    pool = net.mean((1, 2))
    logits = jnp.dot(pool, params["fc"]["kernel"], precision=lax.Precision.HIGHEST)
    if bias:
        logits += params["fc"]["bias"][None]
    return Inception(pool.reshape(batch, time, -1), logits.reshape(batch, time, -1))
