"""An optimizer from optax."""

import optax

from bsq_jax.training.optimizer import decays


def lion(schedule, weight_decay):
    """Lion (Chen et al. 2023).

    Args:
      schedule: the learning rate by step, as ``config.optimizer`` describes it.
      weight_decay: of matrices; norms, biases and embeddings do not decay.

    Returns:
      An optax transformation; the gradients that it gets are clipped already.
    """
    return optax.lion(schedule, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=decays)
