r"""A tokenizer of pictures of any size, which trains on a laptop in minutes.

For pictures of your own::

    python -m bsq_jax.main --config configs/any_size.py --workdir runs/any_size \
        --config.data.source=folder:/path/to/pictures

Without a source it trains on the photographs inside scikit-image and scikit-learn. The network is
that of configs/quickstart.py: attention stays within windows of 4x4 tokens, shifted by half in
every other block, and positions are learned for the tokens of a window. So nothing depends on the
size of a picture, the cost grows with its pixels, and ``bsq_jax.Codec`` codes it as a whole,
without tiles and their seams. Training takes small crops of three aspect ratios, about 2,048 tokens
a step: many small crops teach more than few large ones.

``configs/any_size.py:bits=18`` chooses the bits of a token, a multiple of 6 (24 by default): each 6
are a residual stage, and whole stages can be left out of a file.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument
from bsq_jax.core.errors import UserError

VARIANTS = ("pictures",)
STAGE = 6  # bits
SIZES = ("64x64", "64x96", "96x64")  # height x width of the crops, pixels


def get_config(argument: str = "") -> ConfigDict:
    """The tokenizer; the argument may be ``bits=18``."""
    bits = parse_argument(argument, VARIANTS, bits=24).bits
    if bits < STAGE or bits % STAGE:
        raise UserError(f"bits={bits}: give a multiple of {STAGE}, the bits of a stage")
    config = default_config()
    config.name = f"any size, {bits} bits"
    config.model.update(
        image_size=(64, 64),
        bits=bits,
        width=128,
        layers=2,
        heads=2,
        head_hidden=0,
        head_channels=16,
        spatial_window=4,
        positions="window",
        dtype="float32",
    )
    config.quantizer.stages = bits // STAGE
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(
        name="muon",
        learning_rate=2e-3,
        muon_learning_rate=0.02,
        warmup_steps=100,
        final=0.01,
        clip="global",
        ema=0.99,
    )
    config.data.update(
        source="photos",
        sizes=SIZES,
        resize=400,
        scale=(1.0, 4.0),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=160,
        eval_crop="tiles",
        threads=1,
        cache_mb=512,
    )
    config.train.update(
        steps=2200,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=500,
        picture_every=500,
    )
    config.eval.batch_size = 32
    return config
