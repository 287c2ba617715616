"""Settings for tests: the defaults of the config, made small."""

import dataclasses

from bsq_jax.config import default_config, finalize
from bsq_jax.data.factory import make_data_config


def data_config(**changes):
    """What to read: photos of 64x64 pixels, in two threads, hardly any of them broken."""
    config = default_config()
    config.model.image_size = (64, 64)
    config.data.update(resize=160, eval_resize=160, filter="lanczos", threads=2)
    config.data.update(cache_mb=256, max_broken=0.01)
    return dataclasses.replace(make_data_config(finalize(config)), **changes)
