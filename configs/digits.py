r"""Generation of handwritten digits on a laptop: a tokenizer, and a masked language model.

Run these commands in this order; docs/generation.md is the tutorial::

    python -m bsq_jax.main --config configs/digits.py:tokenizer --workdir runs/digits
    python -m bsq_jax.main --config configs/digits.py:masked_lm --workdir runs/digits_lm \
        --config.masked_lm.tokenizer=runs/digits

The data are the 1,797 digits of 8 x 8 pixels in scikit-learn, enlarged to 32 x 32: a picture is 64
tokens of 8 bits, and the patch of a token covers one pixel of the original. The masked language
model reads a token as two groups of 4 bits; the class is provided for nine pictures in ten.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("tokenizer", "masked_lm")


def get_config(argument: str = "") -> ConfigDict:
    """The tokenizer of the digits, or the masked language model on its tokens."""
    variant = parse_argument(argument, VARIANTS).variant
    config = default_config()
    config.name = "digits" if variant == "tokenizer" else "digits, masked LM"
    config.model.update(
        image_size=(32, 32),
        patch_size=4,
        bits=8,
        width=64,
        layers=2,
        heads=2,
        head_hidden=0,
        dtype="float32",
    )
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(
        learning_rate=3e-3, warmup_steps=100, final=0.01, clip="global", ema=0.99
    )
    config.data.update(
        source="digits", resize=32, eval_resize=32, flip=False, threads=1, cache_mb=64
    )
    config.train.update(
        steps=1500,
        batch_size=64,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=500,
        picture_every=500,
    )
    config.eval.update(batch_size=60, samples=360)
    if variant == "masked_lm":
        config.task = "masked_lm"
        config.masked_lm.update(
            group_size=4, width=128, layers=4, heads=4, classes=10, label_smoothing=0.0
        )
        config.sampling.update(steps=16)
        config.optimizer.update(learning_rate=1e-3, b2=0.96, weight_decay=0.05)
        config.train.update(steps=1200, evaluate_every=400, picture_every=400)
    return config
