"""Image and video tokenization with binary spherical quantization (BSQ-ViT) in JAX."""

from bsq_jax.api import Tokenizer

__all__ = ["Tokenizer"]
