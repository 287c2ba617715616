"""The quickstart trained with Lion."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, Lion"
    config.optimizer.name = "my_optimizer:lion(weight_decay=1e-3)"
    config.optimizer.learning_rate = 5e-4  # Lion's steps are larger than AdamW's
    return config
