"""The quickstart with a loss of edges."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, edges"
    config.loss.terms = ("0.5*my_loss:edges",)
    return config
