"""How much the samples of a batch differ, as one more channel (Karras et al. 2018, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-8  # published


def minibatch_stddev(x: jax.Array, group: int) -> jax.Array:
    """Appends the standard deviation over the samples of a group, averaged over everything else.

    There are ``ceil(batch / group)`` groups, and sample i belongs to group i modulo their number:
    the published strided groups where `group` divides the batch; otherwise sizes differ by at most
    one. The batch is the GLOBAL one when the array is sharded inside a jitted program.

    Args:
      x: ``[batch, *space, channel]`` float32.
      group: the most samples a group.

    Returns:
      ``[batch, *space, channel + 1]``.
    """
    batch = x.shape[0]
    groups = -(-batch // group)
    members = -(-batch // groups)
    axes = tuple(range(1, x.ndim))
    # [member, group, ...]: a member missing from the last row counts nothing.
    there = (jnp.arange(members * groups) < batch).astype(x.dtype)
    there = there.reshape(members, groups, *(1,) * len(axes))
    padded = jnp.pad(x, ((0, members * groups - batch), *((0, 0),) * len(axes)))
    members_of = padded.reshape(members, groups, *x.shape[1:])
    count = jnp.sum(there, axis=0, keepdims=True)
    mean = jnp.sum(members_of, axis=0, keepdims=True) / count
    centred = (members_of - mean) * there
    variance = jnp.sum(centred * centred, axis=0) / count[0]
    stddev = jnp.mean(jnp.sqrt(variance + EPSILON), axis=axes)  # [group]
    of_sample = jnp.tile(stddev, members)[:batch].reshape(batch, *(1,) * len(axes))
    return jnp.concatenate([x, jnp.broadcast_to(of_sample, (*x.shape[:-1], 1))], axis=-1)
