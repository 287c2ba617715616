"""Weights that a run starts from or an evaluation takes: those of a workdir or of an export."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config import LEARNING_RATE_PER_EXAMPLE, finalize, from_json, model_identity
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.settings import differing_keys
from bsq_jax.core.trees import first_difference
from bsq_jax.export import SETS, is_export, load_export
from bsq_jax.tasks.state import TrainState
from bsq_jax.workdir import open_checkpoints, read_config, read_meta


class Initial(NamedTuple):
    """Weights on the host, and what is known of them.

    Attributes:
      config: the config they belong to.
      weights: nested dicts of numpy arrays by name: ``raw``, ``ema``, ``discriminator``, as far as
        they exist.
      origin: where they come from, for people to read.
    """

    config: ConfigDict
    weights: dict[str, Any]
    origin: dict[str, Any]

    @property
    def step(self) -> int:
        """Training steps behind them; 0 where nobody knows."""
        step = self.origin.get("step", 0)
        return step if isinstance(step, int) else 0


def read_saved_config(path: str | os.PathLike[str]) -> ConfigDict:
    """The config of an export or a workdir.

    Raises:
      UserError: it is neither of the two, or damaged.
    """
    return load_export(path, ())[0] if is_export(path) else read_config(path)


def read_initial_config(path: str | os.PathLike[str]) -> ConfigDict:
    """`read_saved_config` for a new run: a learning rate that followed the batch follows the next.

    Raises:
      UserError: as `read_saved_config`.
    """
    config = read_saved_config(path)
    if config.optimizer.learning_rate == LEARNING_RATE_PER_EXAMPLE * config.train.batch_size:
        config.optimizer.learning_rate = None
    return config


def load_initial(path: str | os.PathLike[str], names: Collection[str] = SETS) -> Initial:
    """Reads the weights of an export, or of the newest complete checkpoint of a workdir.

    Args:
      path: the folder.
      names: which sets to read; those that are not there are left out.

    Raises:
      UserError: it is neither of the two, or damaged.
    """
    folder = local_path(path)
    if is_export(folder):
        config, weights, origin = load_export(folder, names)
        return Initial(finalize(config), weights, origin)
    read_config(folder)  # says so where this is no workdir at all
    with open_checkpoints(folder) as checkpoints:
        meta = read_meta(checkpoints, folder)
        config = finalize(from_json(meta["config"], f"the checkpoint in {folder}"))
        fields = {"raw": "params"}
        if config.optimizer.ema:
            fields["ema"] = "ema"
        if config.loss.adversarial:
            fields["discriminator"] = "adversary"
        fields = {name: field for name, field in fields.items() if name in names}
        if not fields:
            return Initial(config, {}, {"step": checkpoints.latest_step()})
        step, state, _ = checkpoints.restore_partial(list(fields.values()))
    weights = {name: state[field] for name, field in fields.items()}
    if "discriminator" in weights:
        weights["discriminator"] = weights["discriminator"]["params"]
    return Initial(config, weights, {"step": step})


def check_same_model(
    config: ConfigDict, initial: Initial, path: str | os.PathLike[str], *, flag: str = "--workdir"
) -> None:
    """Refuses weights of another model than the config's.

    Raises:
      UserError: the message lists the differing keys.
    """
    identities = model_identity(initial.config), model_identity(config)
    if differ := differing_keys(*identities):
        raise UserError(
            f"{path} ({flag}) holds another model ({'; '.join(differ)}): give the same model config"
        )


def place(tree: Any, abstract: Any) -> Any:
    """Arrays that all processes hold alike, laid out on the mesh as `abstract` says.

    Args:
      tree: pytree of numpy arrays.
      abstract: the same of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      UserError: the trees differ.
    """
    if difference := first_difference(tree, abstract):
        raise UserError(f"the weights do not fit the config's model: {difference}")

    def put(leaf: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.asarray(leaf)
        assert wanted.sharding is not None
        return jax.make_array_from_callback(
            wanted.shape, wanted.sharding, lambda index: array[index]
        )

    placed = jax.tree.map(put, tree, abstract)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # A copy, because a step donates its state, and on a CPU these may be numpy's own buffers.
    return jax.jit(lambda leaves: jax.tree.map(jnp.copy, leaves), out_shardings=shardings)(placed)


def start_from(
    state: TrainState, abstract: TrainState, weights: Mapping[str, Any]
) -> tuple[TrainState, str]:
    """Puts weights into the state of a new run, whose optimisers and step stay fresh.

    Args:
      state: the state at step 0.
      abstract: its shapes and shardings.
      weights: of `load_initial`. Parameters come from ``raw``, or from ``ema`` where that is all
        there is; averaged ones from ``ema``, or from ``raw``.

    Returns:
      The state, and a line for the log that says what came from where.
    """
    first = "raw" if "raw" in weights else "ema"
    state = dataclasses.replace(state, params=place(weights[first], abstract.params))
    said = [f"parameters ({first})"]
    if abstract.ema is not None:
        average = "ema" if "ema" in weights else "raw"
        state = dataclasses.replace(state, ema=place(weights[average], abstract.ema))
        said.append(f"averaged parameters ({average})")
    if state.adversary is None or abstract.adversary is None:
        return state, " and ".join(said)
    judge, wanted = weights.get("discriminator"), abstract.adversary.params
    difference = "there is none" if judge is None else first_difference(judge, wanted)
    if difference:
        return state, f"{' and '.join(said)}; the discriminator starts fresh: {difference}"
    adversary = dataclasses.replace(state.adversary, params=place(judge, wanted))
    said.append("the discriminator")
    return dataclasses.replace(state, adversary=adversary), " and ".join(said)
