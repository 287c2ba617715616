"""A first run on a laptop: a small tokenizer of 64x64 pictures, 18 bits per patch.

Command::

    bash launch/quickstart.sh

which is ``python -m bsq_jax.main --config configs/quickstart.py --workdir runs/quickstart`` in a
separate environment. It trains on eight photographs from scikit-image and scikit-learn and is
evaluated on three others. For pictures of your own::

    ... --config.data.source=folder:/path/to/pictures

The README has measured times and scores, with the hardware.

Variants: ``configs/quickstart.py:whole`` attends over whole crops, as the published models do,
enlarges none and minimizes the mean squared error alone; ``:adamw`` is the published way, with
AdamW, a linear pixel head and BSQ in one stage; ``:perceptual`` is that with the perceptual loss
and the discriminator, and ``:l1`` the same run with the mean absolute error alone, for comparison.
``configs/quickstart.py:quantizer=fsq`` (or ``lfq``, ``vq``, ``leech``; ``stages=2`` makes it a
residual one) takes another quantizer than BSQ in three stages; configs/tokenizer.py lists each
kind's arguments.

These settings make it learn in minutes: Muon on the matrices of the blocks, three residual stages
of BSQ, convolutions behind the pixel head, the mean squared error (which PSNR measures) and in the
last third of the steps LPIPS, no entropy term (the bits are balanced without it), and crops at
random scales and with permuted channels, without which the model soon overfits to eight
photographs. A third of the crops are enlarged: smooth places are rare in eight photographs, and a
model that has seen few of them draws the grid of its patches there. Attention stays within windows
of 4x4 tokens, shifted by half in every other block, so that pictures of any size are reconstructed
as a whole, without tiles and their seams (configs/any_size.py trains the same network on crops of
several sizes). docs/learning.md has the figures.
"""

from ml_collections import ConfigDict

from bsq_jax.config import (
    QUANTIZER_ARGUMENTS,
    choose_quantizer,
    default_config,
    parse_argument,
)

VARIANTS = ("muon", "whole", "adamw", "l1", "perceptual")
STAGES = 3  # of 6 bits each, unless an argument chooses a quantizer


def get_config(argument: str = "") -> ConfigDict:
    """The quickstart, or one of its variants."""
    chosen = parse_argument(argument, VARIANTS, **QUANTIZER_ARGUMENTS)
    variant = chosen.variant
    config = default_config()
    config.name = "quickstart" if variant == "muon" else f"quickstart, {variant}"
    kind = choose_quantizer(config, chosen, bits=18)
    if kind != "18 bits":
        config.name += f", {kind}"
    elif variant in ("muon", "whole") and "stages" not in argument:
        config.quantizer.stages = STAGES
    config.model.update(
        image_size=(64, 64), width=128, layers=2, heads=2, head_hidden=0, dtype="float32"
    )
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(
        learning_rate=5e-3, warmup_steps=100, final=0.01, clip="global", ema=0.99
    )
    if variant in ("muon", "whole"):
        config.model.head_channels = 16
        config.optimizer.update(name="muon", learning_rate=2e-3, muon_learning_rate=0.02)
    if variant == "muon":
        config.model.update(spatial_window=4, positions="window")
        config.loss.update(perceptual=0.02, perceptual_network="alexnet", perceptual_start=1500)
    config.data.update(
        source="photos",
        resize=400,
        scale=(1.0, 4.0),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=160,
        eval_crop="tiles",
        threads=1,
        cache_mb=512,
    )
    if variant == "muon":
        config.data.scale = (0.5, 4.0)
    config.train.update(
        steps=2200 if variant in ("muon", "whole") else 2500,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=500,
        picture_every=500,
    )
    config.eval.update(batch_size=32, starter=True)
    if variant in ("l1", "perceptual"):
        config.loss.update(l1=1.0, l2=0.0)
        config.train.update(steps=1500, batch_size=16)
        config.optimizer.learning_rate = 2e-3
    if variant == "perceptual":
        config.loss.update(perceptual=0.5, adversarial=0.1, r1=1.0)
        config.discriminator.update(channel_base=1024, learning_rate=1e-3, clip="global")
    return config
