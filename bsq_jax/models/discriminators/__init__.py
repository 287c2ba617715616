"""Discriminators: networks that distinguish reconstructions from originals.

All take pixels ``[batch, time, height, width, 3]`` in [-1, 1] and give float32 logits ``[batch,
sample, ...]``, high for originals: a sample is a frame, or the clip as a whole.
"""

from bsq_jax.models.discriminators.patchgan import PatchGanDiscriminator
from bsq_jax.models.discriminators.stylegan import StyleGanDiscriminator
from bsq_jax.models.discriminators.stylegan3d import StyleGan3dDiscriminator

__all__ = ["PatchGanDiscriminator", "StyleGan3dDiscriminator", "StyleGanDiscriminator"]
