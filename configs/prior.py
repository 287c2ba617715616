r"""A prior on the tokens of a tokenizer: the codec's files become a third smaller, or a half.

Run after the quickstart, whose tokenizer takes pictures of any size::

    python -m bsq_jax.main --config configs/prior.py:any_size --workdir runs/prior \
        --config.prior.tokenizer=runs/quickstart

For pictures of your own add ``--config.data.source=folder:/path/to/pictures``; for videos::

    python -m bsq_jax.main --config configs/prior.py:clips --workdir runs/prior \
        --config.prior.tokenizer=runs/video --config.data.source=clips:/path/to/videos

Without a variant it trains on pictures of the tokenizer's own size, for tokenizers that see whole
crops (``configs/quickstart.py:whole``), whose pictures are coded in tiles.

An image tokenizer codes the frames of videos one by one; the prior models their dependencies.
The prior looks at a neighborhood of each token (``prior.reach``), so that it codes frames of any
size; ``any_size`` trains it on larger crops than the tokenizer's. ``--config.prior.reach=0`` makes
one of tiles, and lets a run go on that began before there was a choice. ``published`` is one of
tiles, and has the size for the published tokenizers. Add ``--config.prior.order=grids`` for
decoding in three steps a frame.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("pictures", "any_size", "clips", "published")


def get_config(argument: str = "") -> ConfigDict:
    """A prior for pictures in tiles or of any size, for clips, or of the published size."""
    variant = parse_argument(argument, VARIANTS).variant
    config = default_config()
    config.name = f"prior, {variant}"
    config.task = "prior"
    if variant == "published":
        config.prior.update(width=256, layers=12, heads=8, hidden=128, window=4)
        config.data.frames = 16
        config.optimizer.learning_rate = 2e-3
        config.train.update(steps=100_000, batch_size=64)
        return config
    config.prior.update(width=128, layers=3, heads=4, hidden=64, window=1, reach=(3, 3))
    config.optimizer.update(
        learning_rate=5e-3, warmup_steps=100, final=0.02, clip="global", ema=0.99
    )
    config.data.update(
        resize=256,
        scale=(1.0, 2.0),
        filter="bilinear",
        eval_resize=240,
        eval_crop="tiles",
        threads=1,
        cache_mb=1024,
    )
    config.train.update(
        steps=1000,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=0,
        picture_every=0,
    )
    config.eval.batch_size = 32
    if variant == "any_size":
        # Of 64 pixels, the size of the tokenizer, a step has 32 crops; of these 8 or fewer.
        config.data.update(sizes=("128x128", "128x192", "192x128"), resize=128, eval_crop="bucket")
    if variant == "clips":
        config.prior.window = 2
        config.data.update(source="motion", frames=4, resize=0, scale=(1.0, 2.0), eval_clips=2)
        config.train.batch_size = 8
        config.eval.batch_size = 8
    return config
