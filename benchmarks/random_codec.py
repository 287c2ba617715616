"""A codec with random weights, for benchmarks whose figures do not depend on what weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from bsq_jax.coding.codec import Codec
from bsq_jax.config import finalize, load_config_file
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_prior, make_tokenizer


def random_codec(prior: Mapping[str, Any] | None, **model: Any) -> Codec:
    """The networks of ``quickstart:whole`` and of ``prior`` as they are before training.

    Args:
      prior: what differs from ``prior`` of that config; None: without a prior.
      model: what differs from ``model`` of the tokenizer.
    """
    config = load_config_file("configs/quickstart.py:whole")
    config.model.update(model)
    config = finalize(config)
    pixels = np.zeros((1, 1, *config.model.image_size, 3), np.float32)
    params = _fresh(make_tokenizer(config), pixels)
    tokenizer = Tokenizer(config, params, {"step": 0, "name": "random"})
    if prior is None:
        return Codec(tokenizer, name="random")
    settings = load_config_file("configs/prior.py")
    settings.model.update(config.model.to_dict())
    settings.quantizer.update(config.quantizer.to_dict())
    settings.prior.update(tokenizer="nowhere", **prior)
    settings = finalize(settings)
    signs = np.zeros((1, 1, *tokenizer.shape.grid, config.model.bits), np.float32)
    return Codec(tokenizer, (settings, _fresh(make_prior(settings), signs)), name="random")


def _fresh(model: nn.Module, example: np.ndarray) -> Any:
    return nn.meta.unbox(model.init(jax.random.key(0), example)["params"])
