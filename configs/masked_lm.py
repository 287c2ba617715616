r"""The published generator: a masked language model on the tokens of 128x128 pictures, 18 bits.

Run these on every host of a TPU slice or a GPU cluster; the first command trains the tokenizer::

    python -m bsq_jax.main --config configs/tokenizer.py:imagenet128,bits=18 --workdir runs/in128
    python -m bsq_jax.main --config configs/masked_lm.py --workdir runs/in128_lm \
        --config.masked_lm.tokenizer=runs/in128

A token is two groups of nine bits (paper, section 4.3); 256 tokens are decoded in 32 steps with
the cosine schedule. A token set (``python -m bsq_jax tokenize``) as the data source,
``--config.data.source=tokens:...``, saves the computation of the tokenizer in every step.

Scores of the PAPER (not of this code) for ImageNet at 128x128 in 32 steps: FID 5.44, Inception
score 139.6, precision 0.80, recall 0.50.

The paper's text does not give size, optimizer and training length; those here are MaskGIT's (arXiv
2202.04200): 24 layers of width 768 with 8 heads, AdamW with betas 0.9 and 0.96, label smoothing
0.1, 300 epochs of 256 pictures per step. An epoch is 5,004 steps. A step takes 6 FLOP per parameter
and token, 6.7e13 in total, and the tokenizer's encoder a sixth of that: 1.5M steps are 1e20 FLOP,
about three days on eight accelerators that sustain 50 TFLOP/s each. This is an estimate, not a
measurement.

``runlocal`` is a smoke test that takes a minute on a laptop, for a tokenizer of
``configs/tokenizer.py:imagenet128,bits=18,runlocal``. For useful samples from a laptop see
configs/digits.py.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("imagenet128",)


def get_config(argument: str = "") -> ConfigDict:
    """The config of ``imagenet128,runlocal``."""
    chosen = parse_argument(argument, VARIANTS, runlocal=False)
    config = default_config()
    config.name = f"{chosen.variant}, masked LM"
    config.task = "masked_lm"
    config.masked_lm.classes = 1000
    config.optimizer.update(
        learning_rate=1e-4, b2=0.96, weight_decay=0.045, final=0.1, clip="global", ema=0.9999
    )
    config.data.update(source="tfds:imagenet2012", resize=128, eval_resize=128)
    config.train.update(steps=1_500_000, evaluate_every=50_000, picture_every=10_000)
    config.eval.update(samples=10_000)
    if chosen.runlocal:
        config.name += ", runlocal"
        config.model.dtype = "float32"
        config.masked_lm.update(width=32, layers=2, heads=2, classes=0)
        config.sampling.steps = 4
        config.data.update(source="synthetic", resize=32, eval_resize=32, threads=1)
        config.optimizer.update(learning_rate=1e-3, warmup_steps=10, ema=0.9)
        config.train.update(
            steps=40,
            batch_size=16,
            log_every=10,
            checkpoint_every=20,
            evaluate_every=20,
            picture_every=0,
        )
        config.eval.update(batch_size=16, samples=16)
    return config
