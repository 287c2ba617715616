"""The quickstart on drawn disks."""

from bsq_jax.config import load_config_file


def get_config(argument=""):
    """The config of a run; `argument` is what follows the colon in ``--config FILE.py:...``."""
    config = load_config_file(f"quickstart:{argument}")
    config.name = "quickstart, disks"
    config.data.source = "my_source:Disks(count=500, side=128)"
    config.data.update(resize=128, scale=(1.0, 2.0), eval_resize=128)
    return config
