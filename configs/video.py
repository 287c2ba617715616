r"""A video tokenizer on a laptop: clips of up to 16 frames of 64x64, 18 bits per patch.

It starts from the image model of the quickstart, which has the same network, and is trained on
synthetic videos: a camera pans, zooms and rotates over photographs from scikit-image and
scikit-learn::

    bash launch/quickstart.sh   # the image model, in runs/quickstart
    python -m bsq_jax.main --config configs/video.py --workdir runs/video \
        --config.train.init=runs/quickstart

For videos of your own add ``--config.data.source=clips:/path/to/videos``. Without ``train.init`` it
starts from random weights, which takes longer. For comparison, these commands evaluate the image
model frame by frame on the same clips, unchanged and after as much training as the video model::

    python -m bsq_jax.main --mode evaluate --workdir runs/quickstart --config.data.source=motion \
        --config.data.frames=16 --config.data.eval_resize=96 --config.data.eval_crop=center
    python -m bsq_jax.main --config configs/video.py --workdir runs/by_frame \
        --config.train.init=runs/quickstart --config.model.frames=1 --config.data.frames=16

Clips are 4 to 16 frames long, and an eighth of the steps has single frames, so that one model
supports images and clips of any length; the arrays of a step have 1, 4, 8 or 16 frames, for which
four programs are compiled. Attention stays within windows of 4x4 tokens of each frame, so that
frames have any size, and positions are learned for the tokens of a window, as in the image model;
temporal positions start at zero. For clips longer than 16 frames, train both models with
``--config.model.positions=rotary``.
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config, parse_argument

VARIANTS = ("video",)


def get_config(argument: str = "") -> ConfigDict:
    """The one config there is."""
    parse_argument(argument, VARIANTS)
    config = default_config()
    config.name = "video"
    config.model.update(
        image_size=(64, 64), bits=18, width=128, layers=2, heads=2, head_hidden=0, dtype="float32"
    )
    config.model.update(frames=16, head_channels=16, spatial_window=4, positions="window")
    config.quantizer.stages = 3
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(
        learning_rate=2e-3, warmup_steps=100, final=0.01, clip="global", ema=0.99
    )
    config.data.update(
        source="motion",
        frames=16,
        min_frames=4,
        image_share=0.125,
        resize=144,
        scale=(1.0, 2.0),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=96,
        threads=1,
        cache_mb=512,
    )
    config.train.update(
        steps=1500,
        batch_size=4,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=0,
        picture_every=0,
    )
    config.eval.batch_size = 8
    return config
