"""Floating-point operations of a function, counted in its traced program; what a device can do.

XLA's own count takes the body of a loop once, however often it runs, and the layers of our networks
are a loop. So the operations are counted here, in the program as JAX traces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

# Dense bfloat16 products with float32 sums, FLOP/s of a device as JAX counts devices, by the
# beginning of its kind; from the vendors' data sheets (Google Cloud's pages of TPU versions; NVIDIA
# A100, H100 SXM, H200 SXM, B200, L4 and L40S data sheets, without sparsity).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The most FLOP/s of one device in dense bfloat16 products; None where it is not known."""
    return peak_of_kind(device.device_kind)


def total_peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """The most FLOP/s of all devices of a mesh together; None where it is not known."""
    peak = peak_flops(mesh.devices.flat[0])
    return None if peak is None else peak * mesh.size


def peak_of_kind(kind: str) -> float | None:
    """As `peak_flops`, for a ``device_kind``."""
    for name in sorted(PEAKS, key=len, reverse=True):
        # "NVIDIA L4" is not the beginning of "NVIDIA L40".
        if kind.startswith(name) and not kind[len(name) : len(name) + 1].isalnum():
            return PEAKS[name]
    return None


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of one call.

    A multiplication and an addition are two. Bodies of scans count as often as they run, and of
    branches the most expensive one counts. What else a network computes is left out, as is usual.
    Loops of unknown length count once. The program is traced, and nothing is computed.

    Args:
      function: traceable.
      *arguments: arrays or `jax.ShapeDtypeStruct`.
    """
    return count_range(function, *arguments)[1]


def count_range(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """As `count`: with the cheapest of all branches, and with the most expensive ones."""
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))  # as XLA leaves out what nobody uses
    return _count(used, min), _count(used, max)


def _count(jaxpr: Jaxpr, choose: Callable[[Iterator[float]], float]) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += choose(_count(branch.jaxpr, choose) for branch in equation.params["branches"])
        else:
            inner = sum(_count(body, choose) for body in bodies(equation.params))
            total += inner * _repetitions(name, equation.params)
    return total


def _repetitions(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its body is what one device does
        return params["mesh"].size
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an equation holds, of whatever kind it is."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    """Each output sums over the kernel; zeros between the inputs (`lhs_dilation`) cost nothing."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    summed = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    outputs = math.prod(equation.outvars[0].aval.shape)
    return 2.0 * outputs * summed / math.prod(equation.params["lhs_dilation"])
