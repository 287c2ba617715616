"""Tasks of training a tokenizer for tests; settings that a test does not name are plain ones."""

import optax

from bsq_jax.losses import L1, L2
from bsq_jax.training.tasks.adversarial import AdversarialTraining
from bsq_jax.training.tasks.tokenizer import TokenizerTask


def tokenizer_task(model, **changes) -> TokenizerTask:
    """A task with an L1 loss alone and plain gradient descent."""
    settings = {
        "optimizer": optax.sgd(0.1),
        "schedule": optax.constant_schedule(0.1),
        "losses": (L1(1.0), L2(0.0)),
        "entropy_weight": optax.constant_schedule(0.0),
        "adversarial": None,
        "flip": 0.0,
        "ema_decay": 0.0,
        "ema_warmup": True,
        "accumulate": 1,
        "seed": 0,
    }
    return TokenizerTask(model=model, **{**settings, **changes})


def adversarial_training(discriminator, **changes) -> AdversarialTraining:
    """The published losses of a discriminator, with plain gradient descent."""
    settings = {
        "optimizer": optax.sgd(0.1),
        "weight": 0.1,
        "kind": "non_saturating",
        "start": 0,
        "adaptive": False,
        "r1": 10.0,
        "r1_every": 16,
        "lecam": 0.0,
        "lecam_decay": 0.999,
        "clip_frames": 0,
    }
    return AdversarialTraining(discriminator, **{**settings, **changes})
