"""What a lowered program (StableHLO) does that an accelerator should not: read off the program."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from bsq_jax.training.flops import bodies

# Operations that wait for the host, whatever the platform; elsewhere than on TPUs callbacks are
# custom calls whose target says so.
_TRANSFERS = ("infeed", "outfeed", "send", "recv")
_CALLBACK = "callback"
_PRODUCTS = ("dot_general", "dot", "convolution")


class Product(NamedTuple):
    """A matrix product or a convolution.

    Attributes:
      name: where it is from, as JAX names it: transformations and modules.
      operands: types as StableHLO writes them, such as ``256x36xf32``.
    """

    name: str
    operands: tuple[str, ...]

    @property
    def wide(self) -> bool:
        """Whether it has an operand of 32 or 64 bits of floating point."""
        return any(each.rpartition("x")[2] in ("f32", "f64") for each in self.operands)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program's operations.

    Attributes:
      products: matrix products and convolutions, each as often as the program holds it.
      calls: how often each custom call is in it, by target.
      transfers: names of what waits for the host: ``operation of name``.
    """

    products: tuple[Product, ...]
    calls: collections.Counter[str]
    transfers: tuple[str, ...]


def callbacks(traced: Any) -> tuple[str, ...]:
    """Calls of the host in a program as it is traced, by the name of the operation and its place.

    JAX lowers them on the platform that they are for alone, so that `read` may never meet them.

    Args:
      traced: a ``jax.stages.Traced``.
    """

    def within(jaxpr: Any) -> Iterator[str]:
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if _CALLBACK in name or name in ("debug_print", "infeed", "outfeed"):
                yield f"{name} of {equation.source_info.name_stack or 'the outermost function'}"
            for body in bodies(equation.params):
                yield from within(body)

    return tuple(within(traced.jaxpr.jaxpr))


def read(lowered: Any) -> Lowered:
    """Of a ``jax.stages.Lowered``."""
    module = lowered.compiler_ir("stablehlo")
    functions = {each.attributes["sym_name"].value: each for each in module.body.operations}
    products, transfers = list[Product](), list[str]()
    calls: collections.Counter[str] = collections.Counter()
    for operation, name in _operations(functions["main"], "", functions, set()):
        kind = operation.name.removeprefix("stablehlo.")
        if kind in _PRODUCTS:
            products.append(Product(name, tuple(_type(each) for each in operation.operands)))
        elif kind in _TRANSFERS:
            transfers.append(f"{kind} of {name}")
        elif kind == "custom_call":
            target = operation.attributes["call_target_name"].value
            calls[target] += 1
            if _CALLBACK in target:
                transfers.append(f"{target} of {name}")
    return Lowered(tuple(products), calls, tuple(transfers))


def _operations(
    outer: Any, prefix: str, functions: dict[str, Any], seen: set[str]
) -> Iterator[tuple[Any, str]]:
    """All operations inside one, with their names; a function that is called counts once."""
    for region in outer.regions:
        for block in region.blocks:
            for view in block.operations:
                operation = view.operation
                name = _name(operation, prefix)
                yield operation, name
                yield from _operations(operation, prefix, functions, seen)
                if operation.name == "func.call":
                    called = operation.attributes["callee"].value
                    if called not in seen:
                        seen.add(called)
                        yield from _operations(functions[called], name, functions, seen)


def _name(operation: Any, prefix: str) -> str:
    """``loc("name"(...))`` is all that MLIR gives; names inside a function are relative to it."""
    own = str(operation.location).removeprefix('loc("').partition('"')[0]
    return own if own.startswith("jit(") or not prefix else f"{prefix}/{own}"


def _type(value: Any) -> str:
    return str(value.type).removeprefix("tensor<").removesuffix(">")
