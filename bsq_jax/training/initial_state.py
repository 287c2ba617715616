"""The state of a new run from saved weights, laid out on the run's mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import jit_on
from bsq_jax.core.trees import first_difference
from bsq_jax.training.state import Codebooks, TrainState


def place(tree: Any, abstract: Any) -> Any:
    """Puts arrays of the host, the same on all processes, onto the mesh as `abstract` says.

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
    state: TrainState,
    abstract: TrainState,
    weights: Mapping[str, Any],
    codebooks: Codebooks | None = None,
) -> tuple[TrainState, str]:
    """Puts weights into the state of a new run; step, optimizers and LeCAM averages stay at zero.

    The averages of learned codebooks begin at these codebooks, all codes equally used.

    Args:
      state: the state at step 0.
      abstract: its shapes and shardings.
      weights: of `load_saved_model`. Parameters come from ``raw``, or from ``ema`` where that is
        all there is; averaged ones from ``ema``, or from ``raw``.
      codebooks: those of the network that are learned, if there are any.

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
    if codebooks is not None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.codebooks)
        begin = functools.partial(codebooks.init, trained=True)
        begin = jit_on(jax.tree.leaves(shardings)[0].mesh, begin, out_shardings=shardings)
        state = dataclasses.replace(state, codebooks=begin(state.params))
    if state.adversary is None or abstract.adversary is None:
        return state, " and ".join(said)
    discriminator, wanted = weights.get("discriminator"), abstract.adversary.params
    difference = (
        "there is none" if discriminator is None else first_difference(discriminator, wanted)
    )
    if difference:
        return state, f"{' and '.join(said)}; the discriminator starts fresh: {difference}"
    adversary = dataclasses.replace(state.adversary, params=place(discriminator, wanted))
    said.append("the discriminator")
    return dataclasses.replace(state, adversary=adversary), " and ".join(said)
