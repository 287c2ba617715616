"""Distributions of latents, all but one of power 1 a channel, and latents of a trained encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.pixels import to_float
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.inference.tokenizer import Tokenizer

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def uniform(random: np.random.Generator, tokens: int, channels: int) -> np.ndarray:
    """Uniform on the sphere of radius sqrt(channels), float64 ``[tokens, channels]``."""
    points = random.standard_normal((tokens, channels))
    return points * np.sqrt(channels) / np.linalg.norm(points, axis=-1, keepdims=True)


def gaussian(random: np.random.Generator, tokens: int, channels: int) -> np.ndarray:
    """Independent channels, standard Gaussian."""
    return random.standard_normal((tokens, channels))


def student(random: np.random.Generator, tokens: int, channels: int) -> np.ndarray:
    """Independent channels, Student's t with 3 degrees of freedom, whose variance is 3."""
    return random.standard_t(3, (tokens, channels)) / np.sqrt(3)


def axis(random: np.random.Generator, tokens: int, channels: int) -> np.ndarray:
    """One channel of each token has all the power, at random and with random sign."""
    points = np.zeros((tokens, channels))
    signs = random.choice((-1.0, 1.0), tokens)
    points[np.arange(tokens), random.integers(channels, size=tokens)] = signs * np.sqrt(channels)
    return points


def long(random: np.random.Generator, tokens: int, channels: int) -> np.ndarray:
    """Ten times as long as `gaussian`: what has no projection has no bound."""
    return 10 * gaussian(random, tokens, channels)


DISTRIBUTIONS: Mapping[str, Draw] = {
    "uniform on the sphere": uniform,
    "Gaussian": gaussian,
    "Student t, 3 degrees": student,
    "on the axes": axis,
    "Gaussian times 10": long,
}
LATENTS = "latents of the model"


def latents_of(model: str, tokens: int) -> np.ndarray:
    """Latents of a trained tokenizer on its validation data.

    Args:
      model: a workdir or an export.
      tokens: at most so many.

    Returns:
      float64 ``[token, channel]``.

    Raises:
      UserError: there is no tokenizer, or its data cannot be read.
    """
    tokenizer = Tokenizer.load(model)
    config, network = tokenizer.config, tokenizer.model
    encode = jax.jit(lambda params, x: network.apply({"params": params}, x, method="latents"))
    found, count = [], 0
    batches = eval_batches(
        make_data_config(config),
        global_batch=config.eval.batch_size,
        shard_index=0,
        shard_count=1,
    )
    for batch in batches:
        made = np.asarray(encode(tokenizer.params, to_float(jnp.asarray(batch["pixels"]))))
        real = made[np.asarray(batch["mask"]) > 0]
        found.append(real.reshape(-1, real.shape[-1]).astype(np.float64))
        count += len(found[-1])
        if count >= tokens:
            break
    batches.close()
    return np.concatenate(found)[:tokens]
