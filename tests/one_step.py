"""One training step of a task, as the training loop runs it."""

import jax

from bsq_jax.core.sharding import batch_sharding, replicated, to_global


def one_step(task, mesh, batch):
    """Parameters and metrics after a step from the state at step 0, on the host."""
    state = task.init_state(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        task.train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    state, watched = step(state, to_global(batch, mesh), task.load_frozen(mesh))
    return jax.device_get((state.params, watched))
