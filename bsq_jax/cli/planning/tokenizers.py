"""Whose tokens the published models of tokens are on, where no tokenizer is given."""

from __future__ import annotations

from ml_collections import ConfigDict

from bsq_jax.config import load_config_file
from bsq_jax.config.published import find_config_file, published_folder

# Published config -> the tokenizer's, as the documentation of the former trains it.
_TOKENIZERS = {
    "masked_lm": "tokenizer:imagenet128,bits=18",
    "prior": "quickstart:whole",
    "prior:any_size": "quickstart",
    "prior:clips": "video",
    "prior:pictures": "quickstart:whole",
    "prior:published": "tokenizer:imagenet256,bits=36",
}


def with_described_tokenizer(config: ConfigDict, spec: str) -> None:
    """Puts the tokenizer into a published config of a model of its tokens.

    Args:
      config: changed in place; others stay as they are.
      spec: what it was loaded from.
    """
    file, _, argument = spec.partition(":")
    path, variant = find_config_file(file), argument.split(",")[0]
    if path.resolve().parent != published_folder().resolve():
        return
    name = path.stem
    whose = _TOKENIZERS.get(f"{name}:{variant}") or _TOKENIZERS.get(name)
    if whose is None or config.task == "tokenizer":
        return
    tokenizer = load_config_file(whose)
    kept = {key: config.model[key] for key in ("dtype", "attention", "remat")}
    config.model.update(tokenizer.model.copy_and_resolve_references())
    config.model.update(kept)
    config.quantizer.update(tokenizer.quantizer.copy_and_resolve_references())
