"""What a compiled program will need, read off the program: memory, FLOPs, data between devices."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bsq_jax.training.hlo import module_of, size_in_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SCATTER = "all-reduce-scatter"  # what TPUs call a computation that is a reduce-scatter


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while the program runs.

    Attributes:
      arguments: of what it is given.
      results: of what it gives back and what does not lie where arguments lay.
      temporary: of everything in between, at its peak.
    """

    arguments: int
    results: int
    temporary: int

    @property
    def peak(self) -> int:
        """All of them together."""
        return self.arguments + self.results + self.temporary


def memory(compiled: Any) -> Memory:
    """Of a ``jax.stages.Compiled``."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, results, found.temp_size_in_bytes)


def compile_briefly(lowered: Any, platform: str) -> Any:
    """Compiles a program to look at it: for a CPU without optimising its machine code.

    Args:
      lowered: a ``jax.stages.Lowered``.
      platform: that it is lowered for.
    """
    options = {"xla_backend_optimization_level": 0} if platform == "cpu" else {}
    return lowered.compile(compiler_options=options)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in one run of a program.

    Bodies of loops count as often as the loop runs, and a loop that does not tell counts once. Of
    a conditional all branches count.

    Attributes:
      collectives: for each of `KINDS` that there is ``(times, bytes)``: how often it runs, and the
        bytes of its results on the device.
      sent: bytes that the device sends in a ring over many devices: those of what an all-gather
        returns, of what a reduce-scatter takes, twice those of an all-reduce.
      flops: of matrix products and convolutions as they are computed, repetitions included; a
        multiplication and an addition are two.
    """

    collectives: dict[str, tuple[int, int]]
    sent: int
    flops: float


def work(compiled: Any) -> Work:
    """Of a ``jax.stages.Compiled``."""
    return work_of(module_of(compiled))


def work_of(module: Any) -> Work:
    """Of a message ``Module``, see `bsq_jax.training.hlo`."""
    counter = _Counter(module)
    counter.walk(module.entry_computation_id, 1)
    times, size = counter.times, counter.size
    found = {kind: (times[kind], size[kind]) for kind in KINDS if times[kind]}
    return Work(found, counter.sent, counter.flops)


class _Counter:
    """Goes through a program, into what it calls."""

    def __init__(self, module: Any):
        self.times: collections.Counter[str] = collections.Counter()
        self.size: collections.Counter[str] = collections.Counter()
        self.sent, self.flops = 0, 0.0
        self._computations = {each.id: each for each in module.computations}

    def walk(self, computation: int, repeated: int) -> None:
        body = self._computations[computation]
        values = {each.id: each for each in body.instructions}
        if body.name.startswith(_SCATTER):
            self._note(values[body.root_id], values, "reduce-scatter", repeated)
            return
        for each in body.instructions:
            kind = each.opcode.removesuffix("-start")
            if kind in KINDS:
                self._note(each, values, kind, repeated)
            elif each.opcode == "dot":
                self.flops += repeated * _dot(each, values)
            elif each.opcode == "convolution":
                self.flops += repeated * _convolution(each, values)
            inner = repeated * (self._trips(each) if each.opcode == "while" else 1)
            for called in each.called_computation_ids:
                self.walk(called, inner)

    def _note(self, each: Any, values: Mapping[int, Any], kind: str, repeated: int) -> None:
        shape = each.shape
        # What is started here and ended elsewhere also holds its operands.
        if each.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
            shape = shape.tuple_shapes[1]
        result = size_in_bytes(shape)
        given = sum(size_in_bytes(values[operand].shape) for operand in each.operand_ids)
        self.times[kind] += repeated
        self.size[kind] += repeated * result
        self.sent += repeated * {"all-reduce": 2 * result, "reduce-scatter": given}.get(
            kind, result
        )

    def _trips(self, loop: Any) -> int:
        """How often the body of a ``while`` runs, by its own word or, on TPUs, by its condition.

        JAX's scans count from zero in steps of one.
        """
        try:
            return int(json.loads(loop.backend_config)["known_trip_count"]["n"])
        except (ValueError, KeyError, TypeError):
            pass
        condition = self._computations[loop.called_computation_ids[1]]
        values = {each.id: each for each in condition.instructions}
        root = values[condition.root_id]
        if root.opcode != "compare" or root.comparison_direction != "LT":
            return 1
        limit = values[root.operand_ids[1]].literal
        return next((int(kind[0]) for kind in (limit.s32s, limit.s64s, limit.u32s) if kind), 1)


def _dot(each: Any, values: Mapping[int, Any]) -> float:
    left = values[each.operand_ids[0]].shape.dimensions
    summed = math.prod(left[axis] for axis in each.dot_numbers.lhs_contracting)
    return 2.0 * math.prod(each.shape.dimensions) * summed


def _convolution(each: Any, values: Mapping[int, Any]) -> float:
    """Products of a pixel and a tap; where either lies in padding or between pixels is none."""
    source, kernel = (values[operand].shape.dimensions for operand in each.operand_ids[:2])
    numbers, result = each.convolution_numbers, each.shape.dimensions
    pairs = 1
    for axis, window in enumerate(each.window.dimensions):
        size = source[numbers.input_spatial[axis]]
        pairs *= _pairs(size, result[numbers.output_spatial[axis]], window)
    channels = source[numbers.input_feature] // (each.feature_groups or 1)
    examples = source[numbers.input_batch] // (each.batch_groups or 1)
    return 2.0 * pairs * channels * examples * kernel[numbers.kernel_output_feature]


def _pairs(size: int, outputs: int, window: Any) -> int:
    """Pairs of an output and a tap along one axis that meet a pixel."""
    apart, dilation = window.base_dilation or 1, window.window_dilation or 1
    outputs_at = np.arange(outputs)[:, None] * window.stride - window.padding_low
    places = outputs_at + np.arange(window.size) * dilation
    return int(np.sum((places % apart == 0) & (places >= 0) & (places < size * apart)))
