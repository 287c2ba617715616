"""The quickstart with random Fourier features as positions."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, Fourier"
    config.model.positions = "my_positions:fourier(scale=0.5)"
    return config
