"""Workdirs of runs that nobody trained: checkpoints with drawn weights, for tests."""

import json

import jax
import jax.numpy as jnp
from small_codec import make_codec

from bsq_jax.config import to_json
from bsq_jax.training.workdir import open_checkpoints, write_config


def save_steps(workdir, steps, *, prior=False, last=8, keep=2, seed=0):
    """Saves checkpoints of a tokenizer or a prior, each with other weights.

    Args:
      workdir: made if need be; a run that is there goes on.
      steps: which; one is saved in every two steps.
      prior: whether it is a prior, whose tokenizer is the same at all steps.
      last: the step at which the run ends.
      keep: how many checkpoints stay.
      seed: of the weights.
    """
    first = make_codec(prior=prior, seed=seed)
    config = first._prior[0] if prior else first.tokenizer.config
    config = config.copy_and_resolve_references()
    config.train.update(steps=last, checkpoint_every=2, keep=keep)
    write_config(workdir, config)
    if prior:
        first.tokenizer.save(workdir / "tokenizer")
    with open_checkpoints(workdir, keep=keep) as checkpoints:
        checkpoints._current = checkpoints.latest_step()
        for step in steps:
            made = make_codec(prior=prior, seed=seed + step)
            params = made._prior[1] if prior else made.tokenizer.params
            averaged = jax.tree.map(lambda leaf: 0.9 * leaf, params)
            state = jax.tree.map(jnp.asarray, {"params": params, "ema": averaged})
            checkpoints.save(step, state, {"config": json.loads(json.dumps(to_json(config)))})
