"""How fast a network could be if it were nothing but its matrix products.

Each product of the network, of its own shape, is measured in JAX and, where PyTorch is at hand, in
PyTorch, in turn; the faster of the two counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peer import Peer
from benchmarks.timing import in_turn, repeated, sustained
from benchmarks.work import Product, Work, products

SPELL = 0.02  # seconds that a timing of a product should take at least


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the products of some work take.

    Attributes:
      needed: the products, and how often each is computed.
      took: seconds of each on each side, ``jax`` and perhaps ``torch``.
    """

    needed: Mapping[Product, float]
    took: Mapping[tuple[str, Product], float]

    @property
    def sides(self) -> list[str]:
        """Where they were measured."""
        return sorted({side for side, _ in self.took})

    def seconds(self, *sides: str) -> float:
        """Of all products, each on the fastest of these sides; none named: of all."""
        among = sides or self.sides
        return sum(
            times * min(self.took[side, product] for side in among)
            for product, times in self.needed.items()
        )

    def gflops(self, *sides: str) -> float:
        """GFLOP/s of all products together, likewise."""
        total = sum(product.flops * times for product, times in self.needed.items())
        return total / self.seconds(*sides) / 1e9


def measure(work: Work, peer: Peer | None, runs: int, spell: float = SPELL) -> Limit:
    """Measures the products of some work.

    Args:
      work: what is computed.
      peer: measures them too; None: JAX alone does.
      runs: rounds, of which the median counts.
      spell: seconds that a timing of a product should take at least.
    """
    needed = products(work)
    with ExitStack() as stack:
        functions: dict[tuple[str, Product], Callable[[], Any]] = {}
        for product in needed:
            ours = repeated(make_product(product, work.dtype))
            functions["jax", product] = sustained(ours, spell)
            if peer is not None:
                theirs = stack.enter_context(peer.product(product, work.dtype))
                functions["torch", product] = sustained(theirs, spell)
        return Limit(needed, in_turn(functions, runs))


def make_product(product: Product, dtype: str) -> Callable[[], jax.Array]:
    """A matrix product of random numbers, ``[many, m, n]``."""
    many = "" if product.many == 1 else "b"
    left, right = {"ab": ("mk", "kn"), "abt": ("mk", "nk"), "atb": ("km", "kn")}[product.form]
    matrices = [
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(jax.random.split(jax.random.key(0)), product.shapes, strict=True)
    ]
    multiply = jax.jit(lambda a, b: jnp.einsum(f"{many}{left},{many}{right}->{many}mn", a, b))
    return lambda: multiply(*matrices)
