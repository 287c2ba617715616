"""Weights that a run starts from or an evaluation takes: those of a workdir or of an export."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from bsq_jax.config import (
    COMPUTE_KEYS,
    LEARNING_RATE_PER_EXAMPLE,
    finalize,
    from_json,
    model_identity,
)
from bsq_jax.config.values import differing_keys
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.sharding import jit_on
from bsq_jax.core.trees import first_difference
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.positions import fit_temporal, interpolate_spatial
from bsq_jax.models.tokenizer import TokenizerShape
from bsq_jax.training.export import SETS, is_export, load_export
from bsq_jax.training.state import TrainState
from bsq_jax.training.workdir import open_checkpoints, read_config, read_meta

# Keys of `model` that weights can be adapted to, see `adapt`.
TOKENIZER_FOLDER = "tokenizer"  # below the workdir or export of what is trained on its tokens
ADAPTABLE = ("frames", "image_size", "causality", "window")


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


def with_tokenizer(config: ConfigDict, workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config of a model of tokens with the model of its tokenizer, which it need not repeat.

    Args:
      config: of any task.
      workdir: of the run; the tokenizer that lies in it counts more than the config's.

    Raises:
      UserError: there is no tokenizer, or it is damaged.
    """
    if config.task == "tokenizer":
        return config
    inside = local_path(workdir) / TOKENIZER_FOLDER
    path = inside if is_export(inside) else config[config.task].tokenizer
    if not path:
        return config  # finalize says so
    saved = read_saved_config(path)
    if saved.task != "tokenizer":
        raise UserError(f"{path} ({config.task}.tokenizer) holds a {saved.task}, not a tokenizer")
    config = config.copy_and_resolve_references()
    computed = {key: config.model[key] for key in COMPUTE_KEYS}
    config.model.update(saved.model)
    config.model.update(computed)
    config.quantizer.update(saved.quantizer)
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
        if config.task == "tokenizer" and config.loss.adversarial:
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
    config: ConfigDict,
    initial: Initial,
    path: str | os.PathLike[str],
    *,
    flag: str = "--workdir",
    adaptable: Collection[str] = (),
) -> None:
    """Refuses weights of another model than the config's.

    Args:
      config: of the model that wants the weights.
      initial: the weights.
      path: where they come from, for the message.
      flag: what asked for them, for the message.
      adaptable: keys of ``model`` that may differ, because `adapt` follows.

    Raises:
      UserError: the message lists the differing keys.
    """
    identities = model_identity(initial.config), model_identity(config)
    for identity in identities:
        for key in adaptable:
            del identity["model"][key]
    if differ := differing_keys(*identities):
        text = f"{path} ({flag}) holds another model ({'; '.join(differ)}): "
        text += "give the same model config"
        if adaptable:
            keys = [f"model.{key}" for key in adaptable]
            text += f" (only {', '.join(keys[:-1])} and {keys[-1]} may differ)"
        raise UserError(text)


def adapt(initial: Initial, config: ConfigDict) -> tuple[dict[str, Any], list[str]]:
    """Fits weights to a model that differs from theirs in the keys of `ADAPTABLE` alone.

    What an image model does with one frame, its video model does too, whatever the positions. Frame
    by frame it starts as the image model if ``model.window`` is 1 and the positions are learned
    (they start at zero along time) or rotary (only distances inside a frame are left). Fixed sines
    along time (``sincos``) are there from the second frame on, and the model has to learn them.

    Args:
      initial: of `load_initial`.
      config: of the model that is to have them.

    Returns:
      The sets of weights, and for each key that differs what was done, in words.

    Raises:
      UserError: the weights do not fit their own config.
    """
    have, want = (make_tokenizer(c).shape for c in (initial.config, config))
    weights = dict(initial.weights)
    if want.positions == "learned" and (have.frames, have.grid) != (want.frames, want.grid):
        for name in {"raw", "ema"} & weights.keys():
            weights[name] = _adapt_positions(weights[name], have, want)
    said = []
    for key in ADAPTABLE:
        values = (settings.model[key] for settings in (initial.config, config))
        before, after = ("x".join(map(str, np.ravel(value))) for value in values)
        if before != after:
            said.append(f"model.{key} {before} -> {after}{_what_is_done(key, have, want)}")
    return weights, said


def _adapt_positions(params: Any, have: TokenizerShape, want: TokenizerShape) -> dict[str, Any]:
    """Parameters with learned positions for another number of frames, another grid, or both."""
    flat = flatten_dict(params)
    for half in ("encoder", "decoder"):
        where = (half, "trunk", "positions")
        spatial, temporal = flat.get((*where, "spatial")), flat.pop((*where, "temporal"), None)
        wanted = (have.tokens, have.width), (have.frames, have.width) if have.frames > 1 else ()
        if (np.shape(spatial), () if temporal is None else temporal.shape) != wanted:
            raise UserError(f"the weights do not fit their own config: see {'/'.join(where)}")
        if temporal is not None and want.frames == 1:
            spatial = spatial + temporal[:1]
        flat[*where, "spatial"] = interpolate_spatial(spatial, have.grid, want.grid)
        if want.frames > 1:
            flat[*where, "temporal"] = fit_temporal(temporal, want.frames, want.width)
    return unflatten_dict(flat)


def _what_is_done(key: str, have: TokenizerShape, want: TokenizerShape) -> str:
    """How weights of one shape come to serve another that differs in `key`, after a colon."""
    if key not in ("frames", "image_size"):
        return ""
    if want.positions != "learned":
        return f": {want.positions} positions are computed"
    if key == "image_size":
        one, other = ("x".join(map(str, shape.grid)) for shape in (have, want))
        return f": spatial positions {one} -> {other} interpolated"
    if have.frames == 1:
        return ": temporal positions start at zero"
    if want.frames == 1:
        return ": the first temporal position is added to the spatial ones"
    if want.frames < have.frames:
        return f": the first {want.frames} temporal positions"
    return f": temporal positions after {have.frames} start as the last"


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
    mesh = jax.tree.leaves(shardings)[0].mesh
    copy = jit_on(mesh, lambda leaves: jax.tree.map(jnp.copy, leaves), out_shardings=shardings)
    return copy(placed)


def start_from(
    state: TrainState, abstract: TrainState, weights: Mapping[str, Any]
) -> tuple[TrainState, str]:
    """Puts weights into the state of a new run; step, optimisers and LeCAM averages stay fresh.

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
