"""What to read, from a config."""

from ml_collections import ConfigDict

from bsq_jax.config.sizes import parse_sizes
from bsq_jax.data.settings import DataConfig


def make_data_config(config: ConfigDict) -> DataConfig:
    """The settings that ``config.data``, the crop of ``config.model`` and the seed describe.

    Raises:
      UserError: a setting is out of range.
    """
    settings = config.data.to_dict()
    masked_lm = config.task == "masked_lm"
    longest = config.masked_lm.frames if masked_lm else config.model.frames
    settings["frames"] = settings["frames"] or longest
    settings["sizes"] = parse_sizes(settings["sizes"])
    return DataConfig(
        **settings,
        image_size=tuple(config.model.image_size),
        seed=config.seed,
        labels=masked_lm and config.masked_lm.classes > 0,
    )
