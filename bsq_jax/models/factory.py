"""Models from a config."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from bsq_jax.models.tokenizer import TokenizerModel, TokenizerShape
from bsq_jax.quantizers import make_quantizer


def make_tokenizer(config: ConfigDict) -> TokenizerModel:
    """The tokenizer that ``config.model`` and ``config.quantizer`` describe."""
    model = config.model
    height, width = model.image_size
    return TokenizerModel(
        shape=TokenizerShape(
            image_height=height,
            image_width=width,
            frames=model.frames,
            patch_size=model.patch_size,
            bits=model.bits,
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            mlp_ratio=model.mlp_ratio,
            head_hidden=model.head_hidden,
        ),
        quantizer=make_quantizer(config.quantizer),
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        attention=model.attention,
    )
