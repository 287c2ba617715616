"""Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737): signs of latents that are not bounded."""

from __future__ import annotations

import jax

from bsq_jax.quantizers.signs import SignQuantizer


class LookupFreeQuantizer(SignQuantizer):
    """Quantizes latents to the corners ``+-1``; see `SignQuantizer` for the attributes.

    Nothing bounds the error: the commitment alone keeps latents near the corners, and where they
    are long the soft assignment, and with it the entropy terms, have next to no gradient.
    """

    def project(self, latents: jax.Array) -> jax.Array:
        """The latents themselves."""
        return latents
