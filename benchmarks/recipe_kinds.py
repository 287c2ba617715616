"""The recipes of `benchmarks.recipes`: configs of one network, one batch and the same crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config import finalize, load_config_file, set_overrides

Settings = Mapping[str, Any]  # by dotted key


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tokenizer is trained.

    Attributes:
      what: it is, in words.
      config: file and arguments.
      settings: what is changed in it.
      shares: settings that are a share of the steps, of 1 step at least.
      torch: plain PyTorch trains it, not this package.
    """

    what: str
    config: str
    settings: Settings = dataclasses.field(default_factory=dict)
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    torch: bool = False

    def flags(self, steps: int, seed: int, common: Settings, last: Sequence[str]) -> list[str]:
        """The flags of ``bsq_jax.main`` behind ``--config FILE``.

        Args:
          steps: of the training.
          seed: of the weights and the crops.
          common: settings that are the same for all recipes.
          last: flags that are the same for all, and come last.
        """
        shares = {key: max(1, round(share * steps)) for key, share in self.shares.items()}
        run = {"train.steps": steps, "train.log_every": min(10, -(-steps // 4)), "seed": seed}
        settings = {**self.settings, **shares, **common, **run}
        return [f"--config.{key}={value}" for key, value in settings.items()] + list(last)

    def finalized(self, steps: int, seed: int, common: Settings, last: Sequence[str]) -> ConfigDict:
        """The config that these flags make."""
        config = load_config_file(self.config)
        set_overrides(config, self.flags(steps, seed, common, last))
        return finalize(config)


_NETWORK: Settings = {
    "model.image_size": 64,
    "model.width": 128,
    "model.layers": 2,
    "model.heads": 2,
    "model.head_hidden": 0,
    "model.dtype": "float32",
    "train.batch_size": 32,
}
# The published discriminator has 128 channels at the resolution of the pixels beside a network of
# width 768; this one has 16 beside a width of 128, as that of configs/quickstart.py:perceptual.
_PUBLISHED: Settings = {**_NETWORK, "discriminator.channel_base": 1024}
# Of 1,000,000 steps the learning rate rises in 5,000 and the entropy terms' weight falls in 2,000.
_SHARES = {"optimizer.warmup_steps": 0.005, "loss.entropy_ramp_steps": 0.002}
_TOKENIZER = "configs/tokenizer.py:imagenet256,bits=18"
_RATE: Settings = {"optimizer.learning_rate": 2e-3}
_PIXELS: Settings = {"loss.perceptual": 0.0, "loss.adversarial": 0.0}

RECIPES: Mapping[str, Recipe] = {
    "ours": Recipe(
        "Muon, residual BSQ of 3 stages of 6 bits, convolutions behind the pixel head, MSE",
        "configs/quickstart.py:whole",
    ),
    "ours_fsq": Recipe(
        "the same with FSQ, 9 channels of 4 levels",
        f"configs/quickstart.py:whole,quantizer=fsq,levels={'x'.join('4' * 9)}",
    ),
    "quickstart": Recipe(
        "ours with attention within windows and, in the last third, LPIPS (AlexNet)",
        "configs/quickstart.py",
        shares={"loss.perceptual_start": 15 / 22},  # step 1,500 of 2,200
    ),
    "published": Recipe(
        "BSQ, AdamW at 4e-7 times the batch, L1, LPIPS, discriminator, entropy terms",
        *(_TOKENIZER, _PUBLISHED, _SHARES),
    ),
    "published_rate": Recipe(
        "the same at a learning rate of 2e-3", _TOKENIZER, {**_PUBLISHED, **_RATE}, _SHARES
    ),
    "published_pixels": Recipe(
        "that with L1 and entropy terms alone",
        *(_TOKENIZER, {**_PUBLISHED, **_RATE, **_PIXELS}, _SHARES),
    ),
    "plain": Recipe("BSQ, AdamW at 2e-3, MSE", "configs/quickstart.py:adamw", _RATE),
    "pytorch": Recipe("plain, in plain PyTorch", "configs/quickstart.py:adamw", _RATE, torch=True),
}
