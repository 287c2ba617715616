"""A first run on a laptop, on photographs that come inside scikit-image and scikit-learn.

Command: ``bash launch/quickstart.sh``
"""

from ml_collections import ConfigDict

from bsq_jax.config import default_config


def get_config(argument: str = "") -> ConfigDict:
    """The quickstart; takes no argument."""
    del argument
    config = default_config()
    config.name = "quickstart"
    config.model.update(
        image_size=(64, 64), bits=18, width=192, layers=3, heads=3, head_hidden=0, dtype="float32"
    )
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0)
    config.optimizer.update(
        learning_rate=1e-3, warmup_steps=100, final=0.01, clip="global", ema=0.99
    )
    config.data.update(
        source="photos", resize=160, eval_resize=160, eval_crop="tiles", threads=1, cache_mb=256
    )
    config.train.update(
        steps=2000,
        batch_size=32,
        log_every=50,
        checkpoint_every=500,
        evaluate_every=500,
        picture_every=500,
    )
    config.eval.batch_size = 32
    return config
