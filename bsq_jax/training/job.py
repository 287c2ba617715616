"""What comes before a run, from the command line and from Python alike: config and JAX."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from bsq_jax.config import finalize, load_config_file, set_value
from bsq_jax.core.compilation_cache import enable_compilation_cache
from bsq_jax.core.errors import UserError
from bsq_jax.training import determinism
from bsq_jax.training.saved_models import read_initial_config, read_saved_config, with_tokenizer


def chosen_config(
    given: ConfigDict | str | None,
    workdir: pathlib.Path,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    evaluate: bool = False,
) -> ConfigDict:
    """The complete config of a run: what is given, the workdir's or that of the initial weights.

    Args:
      given: a config; or the name or the path of a config file, with its argument; or None.
      workdir: folder of the run, or an export to evaluate.
      overrides: dotted keys and values as text, which are set in it.
      evaluate: whether the config is of an evaluation only.

    Returns:
      A new finalised config.

    Raises:
      UserError: there is no config, or a mistake in it.
    """
    if isinstance(given, ConfigDict):
        config = copy.deepcopy(given)
    elif given is not None:
        config = load_config_file(given)
    elif evaluate or (workdir / "config.json").exists():
        config = read_saved_config(workdir)
    elif initial := dict(overrides).get("train.init"):
        config = read_initial_config(initial)
    else:
        raise UserError(
            "there is no saved config in the workdir: "
            "give a config, by name (quickstart) or FILE.py"
        )
    if evaluate:
        # What training chose for speed is no part of a model's quality; an override still counts.
        config.model.dtype = "float32"
    for key, text in overrides:
        set_value(config, key, text)
    return finalize(with_tokenizer(config, workdir))


def prepare(config: ConfigDict, connect: Callable[[], None] | None = None) -> None:
    """Sets what a run needs of JAX, for this process.

    Args:
      config: a finalised config.
      connect: makes this process one of several; None: it stays what it is.

    Raises:
      UserError: JAX was started in another way than ``train.deterministic`` needs.
    """
    if config.train.deterministic:
        determinism.ask_for()
    if connect is not None:
        connect()
    enable_compilation_cache()
