"""The quickstart with ternary tokens."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, ternary"
    config.quantizer.update(name="my_quantizer:Ternary(digits=11)", stages=1)
    config.model.bits = 0  # those of the quantizer: 18
    return config
