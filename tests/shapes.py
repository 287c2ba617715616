"""Settings of models and data for tests: the defaults of the config, with changes.

Values without a name are those of the first fields, in order.
"""

import dataclasses

from bsq_jax.config import default_config, finalize
from bsq_jax.data.factory import make_data_config
from bsq_jax.models.factory import make_discriminator, make_masked_lm, make_prior, make_tokenizer
from bsq_jax.models.masked_lm.sampler import Sampling
from bsq_jax.quantizers import make_quantizer
from bsq_jax.quantizers.layout import TokenLayout


def _changed(default, values, changes):
    fields = [field.name for field in dataclasses.fields(default)]
    return dataclasses.replace(default, **dict(zip(fields, values, strict=False)), **changes)


def data_config(**changes):
    """What to read: photos of 64x64 pixels, in two threads, hardly any of them broken."""
    config = default_config()
    config.model.image_size = (64, 64)
    config.data.update(resize=160, eval_resize=160, filter="lanczos", threads=2)
    config.data.update(cache_mb=256, max_broken=0.01)
    return dataclasses.replace(make_data_config(finalize(config)), **changes)


def tokenizer_shape(*values, **changes):
    """Of a tokenizer with BSQ, which has a channel for each bit."""
    shape = _changed(make_tokenizer(default_config()).shape, values, changes)
    prefixes = tuple(range(shape.min_bits or shape.bits, shape.bits + 1))
    return dataclasses.replace(shape, channels=shape.bits, prefixes=prefixes)


def _with_layout(changes):
    """`bits` among the changes as the layout of tokens all of whose patterns name codes."""
    if (bits := changes.pop("bits", None)) is not None:
        changes.setdefault("layout", TokenLayout(1, bits, 2**bits))
    return changes


def prior_shape(rows, columns, bits=None, **changes):
    changes = _with_layout({"bits": bits, **changes})
    return _changed(make_prior(default_config()).shape, (rows, columns), changes)


def masked_lm_shape(*values, **changes):
    return _changed(make_masked_lm(default_config()).shape, values, _with_layout(changes))


def sampling_settings(**changes):
    config = default_config()
    default = Sampling(**config.sampling.to_dict(), unit=config.masked_lm.mask_unit)
    return _changed(default, (), changes)


def bsq_quantizer(*values, **changes):
    config = default_config()
    config.model.bits = 18
    default = make_quantizer(finalize(config))
    fields = [field.name for field in dataclasses.fields(default)]
    return default.clone(**dict(zip(fields[1:], values, strict=False)), **changes)


def _discriminator(name, values, changes):
    config = default_config()
    config.model.update(frames=4, dtype="float32")
    config.discriminator.name = name
    default = make_discriminator(config)
    fields = [field.name for field in dataclasses.fields(default)]
    return default.clone(**dict(zip(fields, values, strict=False)), **changes)


def stylegan_discriminator(*values, **changes):
    return _discriminator("stylegan", values, changes)


def stylegan3d_discriminator(*values, **changes):
    return _discriminator("stylegan3d", values, changes)


def patchgan_discriminator(*values, **changes):
    return _discriminator("patchgan", values, changes)
