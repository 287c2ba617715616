"""Random keys that are derived, never carried.

A key is a pure function of (seed, name of the stream, step). Nothing random therefore needs saving:
a resumed run draws exactly what a run that never stopped would have drawn.
"""

import zlib

import jax


def stream_key(seed: int | jax.Array, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of one named stream at one step.

    Args:
      seed: the run's seed.
      stream: what the numbers are for, such as ``"init"``. Two names never share numbers.
      step: the optimiser step; may be traced.

    Returns:
      A typed scalar key, the same on every host.
    """
    key = jax.random.key(seed)
    key = jax.random.fold_in(key, zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
