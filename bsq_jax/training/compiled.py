"""What a compiled program will need, read off the program: memory, and data between devices."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BITS = re.compile(r"\d+")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BELOW = re.compile(r"^  ROOT .* compare\((?:.*?%)?[\w.\-]+, (?:.*?%)?([\w.\-]+)\), direction=LT")
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


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Operations between devices in the text of a compiled program.

    Args:
      text: ``Compiled.as_text()``.

    Returns:
      For each of `KINDS` that there is ``(times, bytes)``: how often it runs, bodies of loops as
      often as the loop does, and the bytes of its results on one device. Of a conditional all
      branches count; a loop that does not tell how often it runs counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            bodies[current] = []
            entry = current if match[1] else entry
        elif current:
            bodies[current].append(line)

    times: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()

    def walk(name: str, repeated: int) -> None:
        for line in bodies.get(name, ()):
            if name.startswith(_SCATTER):
                if line.startswith("  ROOT "):
                    times["reduce-scatter"] += repeated
                    size["reduce-scatter"] += repeated * _bytes(line.split("(")[0], in_parts=False)
            elif match := _COLLECTIVE.search(line):
                times[match[2]] += repeated
                size[match[2]] += repeated * _bytes(match[1], in_parts=bool(match[3]))
            inner = repeated * (_trips(line, bodies) if " while(" in line else 1)
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for body in called:
                walk(body, inner)

    walk(entry, 1)
    return {kind: (times[kind], size[kind]) for kind in KINDS if times[kind]}


def _trips(loop: str, bodies: Mapping[str, list[str]]) -> int:
    """How often the body of a ``while`` runs, by its own word or, on TPUs, by its condition.

    JAX's scans count from zero in steps of one.
    """
    if told := _TRIPS.search(loop):
        return int(told[1])
    named = _CONDITION.search(loop)
    condition = bodies.get(named[1], []) if named else []
    below = next(filter(None, map(_BELOW.match, condition)), None)
    if below is None:
        return 1
    limit = re.compile(rf"^  %?{re.escape(below[1])} = s32\[\]\S* constant\((\d+)\)")
    found = next(filter(None, map(limit.match, condition)), None)
    return int(found[1]) if found else 1


def _bytes(shape: str, *, in_parts: bool) -> int:
    """Of an array or a tuple of arrays as HLO writes them.

    Args:
      shape: such as ``(f32[8,4]{1,0}, s32[])``.
      in_parts: an operation that is started here and ended elsewhere holds its operands too; where
        that is so the larger half counts.
    """
    sizes = []
    for kind, dimensions in _ARRAY.findall(shape):
        count = 1
        for number in filter(None, dimensions.split(",")):
            count *= int(number)
        bits = _BITS.search(kind)
        sizes.append(count * (int(bits[0]) if bits else 8) // 8)
    if in_parts and len(sizes) > 1 and shape.startswith("(("):
        return max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))
    return max(sizes) if in_parts and len(sizes) == 2 else sum(sizes)
