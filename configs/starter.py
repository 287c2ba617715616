r"""The starter model: the tokenizer of photographs that comes with the package, and its prior.

Trained on a folder of photographs, of 384 pixels and more to the short side::

    python -m bsq_jax.main --config configs/starter.py --workdir runs/starter \
        --config.data.source=folder:/path/to/photographs
    python -m bsq_jax.main --config configs/starter.py:prior --workdir runs/starter_prior \
        --config.prior.tokenizer=runs/starter \
        --config.data.source=folder:/path/to/photographs

The network is that of configs/any_size.py, for pictures of any size, but wider and with a deeper
decoder. Tokens have 9 channels of 8 levels in three stages of one bit each (finite scalar
quantization); pictures can be decoded from the first two stages, 18 bits a token, too. The loss is
the mean squared error plus the rate, ``loss.rate`` times the bits a pixel that a small prior needs:
plain areas then cost little, and of the 27 bits of a token a file has about half. From step 6,000
on LPIPS has a small part in it. docs/starter.md has the data, the measured quality and the limits
of the model.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("tokenizer", "prior")
CHANNELS, STAGES = 9, 3
SIZES = ("64x64", "64x96", "96x64")  # height x width of the crops, pixels


def get_config(argument: str = "") -> ConfigDict:
    """The tokenizer, or the prior on its tokens."""
    variant = parse_argument(argument, VARIANTS).variant
    config = default_config()
    config.optimizer.update(warmup_steps=100, final=0.01, clip="global")
    config.data.update(
        resize=768,
        scale=(1.0, 2.0),
        filter="bicubic",
        eval_resize=384,
        eval_crop="tiles",
        threads=1,
        cache_mb=1024,
    )
    config.train.update(batch_size=32, log_every=50, picture_every=0)
    config.eval.batch_size = 8
    if variant == "prior":
        config.name = "starter, prior"
        config.task = "prior"
        config.prior.update(width=128, layers=3, heads=4, hidden=96, window=1, reach=(3, 3))
        config.optimizer.update(learning_rate=4e-3, ema=0.995)
        # Of 64 pixels, the size of the tokenizer, a step has 32 crops; of these 8 or fewer.
        config.data.update(sizes=("128x128", "128x192", "192x128"))
        config.train.update(steps=1000, checkpoint_every=500, evaluate_every=0)
        return config
    config.name = "starter"
    config.model.update(
        image_size=(64, 64),
        bits=CHANNELS * STAGES,
        min_bits=CHANNELS * 2,
        width=256,
        encoder_layers=2,
        layers=4,
        heads=4,
        head_hidden=0,
        head_channels=16,
        spatial_window=4,
        positions="window",
        dtype="float32",
    )
    config.quantizer.update(name="fsq", levels=(2,) * CHANNELS, stages=STAGES)
    config.loss.update(l1=0.0, l2=1.0, rate=0.015, rate_growth=1.0, entropy=0.0, adversarial=0.0)
    config.loss.update(perceptual=0.02, perceptual_network="alexnet", perceptual_start=6000)
    config.optimizer.update(name="muon", learning_rate=2e-3, muon_learning_rate=0.02, ema=0.999)
    config.data.sizes = SIZES
    config.train.update(steps=9500, checkpoint_every=1000, evaluate_every=0)
    return config
