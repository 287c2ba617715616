"""What training minimises: pure functions of arrays."""

from bsq_jax.losses.reconstruction import l1, l2, ramp

__all__ = ["l1", "l2", "ramp"]
