"""The quickstart, measured by its colors too."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, colorfulness"
    config.eval.metrics = ("my_metric:colorfulness",)
    return config
