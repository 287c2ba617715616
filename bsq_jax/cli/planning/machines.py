"""Kinds of devices, as their vendors describe them."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Machine(NamedTuple):
    """A kind of device.

    Attributes:
      kind: as JAX calls it.
      memory: GiB.
      bandwidth: bytes a second that it sends to its neighbours while it receives as many.
    """

    kind: str
    memory: int
    bandwidth: float

    @property
    def peak(self) -> float:
        """The most FLOP/s in dense bfloat16 products."""
        from bsq_jax.training.flops import peak_of_kind  # only here: --help loads no jax

        peak = peak_of_kind(self.kind)
        assert peak is not None
        return peak


# Memory, and half of the bandwidth that counts both directions: chip to chip in a TPU slice (Google
# Cloud's pages of TPU versions; that of v4 gives 2,400 Gbit/s of one direction), NVLink in a node
# (NVIDIA's data sheets of A100, H100, H200 and B200, SXM). `bsq_jax.training.flops.PEAKS` has the
# peaks, from the same pages.
MACHINES = {
    "v4": Machine("TPU v4", 32, 300e9),
    "v5e": Machine("TPU v5 lite", 16, 200e9),
    "v5p": Machine("TPU v5", 95, 600e9),
    "v6e": Machine("TPU v6 lite", 32, 400e9),
    "a100": Machine("NVIDIA A100", 80, 300e9),
    "h100": Machine("NVIDIA H100", 80, 450e9),
    "h200": Machine("NVIDIA H200", 141, 450e9),
    "b200": Machine("NVIDIA B200", 180, 900e9),
}
