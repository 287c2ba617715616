"""Image and video tokenization with binary spherical quantization (BSQ-ViT) in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsq_jax.api.train import load_config, train
    from bsq_jax.coding.codec import Codec
    from bsq_jax.inference.generator import Generator
    from bsq_jax.inference.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = ["Codec", "Generator", "Tokenizer", "__version__", "load_config", "train"]


def __getattr__(name: str) -> Any:
    # On first use: the command line then answers --help and wrong flags without loading JAX.
    if name == "Tokenizer":
        from bsq_jax.inference.tokenizer import Tokenizer

        return Tokenizer
    if name == "Codec":
        from bsq_jax.coding.codec import Codec

        return Codec
    if name == "Generator":
        from bsq_jax.inference.generator import Generator

        return Generator
    if name in ("load_config", "train"):
        from bsq_jax.api import train as module

        return getattr(module, name)
    raise AttributeError(f"module 'bsq_jax' has no attribute {name!r}")
