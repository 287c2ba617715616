"""Memory, FLOPs and collectives of a training step, compiled for a mesh but never run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config.sizes import parse_sizes
from bsq_jax.config.values import pair
from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_sharding
from bsq_jax.core.target import described
from bsq_jax.data.size_schedule import batch_of_size
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.training.accumulate import check_divides
from bsq_jax.training.compiled import Memory, Work, compile_briefly, memory, work
from bsq_jax.training.recipes.mixed_sizes import step_multiple
from bsq_jax.training.state import jit_step
from bsq_jax.training.tasks.masked_lm import make_masked_lm_task
from bsq_jax.training.tasks.prior import make_prior_task
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.useful_flops import step_flops


class DoesNotFitError(UserError):
    """The step needs more memory than a device has."""


def make_task(config: ConfigDict) -> Any:
    """The task of a finalised config, its tokenizer, if there is one, without weights."""
    if config.task == "tokenizer":
        return make_tokenizer_task(config)
    tokenizer = FrozenTokenizer(make_tokenizer(config), None)
    make = {"prior": make_prior_task, "masked_lm": make_masked_lm_task}[config.task]
    return make(config, tokenizer)


def abstract_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the longest global batch that training sees, of ``data.sizes`` the largest.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    check_divides(config.train.batch_size, config.train.accumulate, mesh)
    count, *size = largest_step(config, step_multiple(config, mesh))
    frames = config.data.frames or (
        config.masked_lm.frames if config.task == "masked_lm" else config.model.frames
    )
    shape = (count, frames, *size, 3)
    batch: dict[str, Any] = {"pixels": (shape, jnp.uint8), "frames": ((count,), jnp.int32)}
    if config.task == "masked_lm":
        batch["label"] = ((count,), jnp.int32)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*leaf, sharding=sharding) for name, leaf in batch.items()}


def largest_step(config: ConfigDict, multiple: int) -> tuple[int, int, int]:
    """(examples, height, width) of the step with most pixels, of those that ``data.sizes`` allows.

    Args:
      config: a finalised config.
      multiple: see `recipes.mixed_sizes.step_multiple`.
    """
    batch, built_for = config.train.batch_size, tuple(config.model.image_size)
    steps = [
        (batch_of_size(size, batch, built_for, multiple), *size)
        for size in parse_sizes(config.data.sizes)
    ]
    return max(steps, key=math.prod, default=(batch, *built_for))


def tokens_of(config: ConfigDict, batch: Mapping[str, Any]) -> int:
    """Tokens of a global batch of pixels or bits, filling of short clips included."""
    if "bits" in batch:
        return math.prod(batch["bits"].shape[:4])
    examples, frames, height, width = batch["pixels"].shape[:4]
    patch = pair(config.model.patch_size)
    times = 1 - (1 - frames) // config.model.patch_time  # the first frame, and groups
    return examples * times * (height // patch[0]) * (width // patch[1])


def bytes_of_device(tree: Any) -> int:
    """Bytes that one device holds of arrays or abstract arrays with shardings, exactly."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step, compiled for a mesh.

    Attributes:
      memory: bytes on each device.
      work: what each device does.
    """

    memory: Memory
    work: Work


def compile_step(config: ConfigDict, mesh: jax.sharding.Mesh) -> CompiledStep:
    """Compiles the training step for a mesh, of devices that are here or only described.

    Args:
      config: a finalised config.
      mesh: the mesh.

    Raises:
      DoesNotFitError: the program does not fit into a device's memory.
      UserError: the batch does not divide.
    """
    platform = mesh.devices.flat[0].platform
    with _for(mesh):
        task = make_task(config)
        state, frozen = task.abstract_state(mesh), task.abstract_frozen(mesh)
        batch = abstract_batch(config, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        lowered = jit_step(task, mesh, shardings).lower(state, batch, frozen)
    try:
        compiled = compile_briefly(lowered, platform)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if not reason.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise DoesNotFitError(
            "the step does not fit into a device's memory: lower train.batch_size, raise "
            f"train.accumulate, set model.remat=dots or full, or raise mesh.fsdp ({reason[:300]})"
        ) from None
    return CompiledStep(memory(compiled), work(compiled))


def _for(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager[None]:
    """Traces for the devices of a mesh; CPUs stand for accelerators."""
    platform = mesh.devices.flat[0].platform
    return cpu.layers_in_a_loop() if platform == "cpu" else described(platform)


def state_bytes(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Bytes on each device of what a step is given, by part; exact, and nothing is compiled."""
    task = make_task(config)
    return _bytes_of_parts(
        task.abstract_state(mesh), task.abstract_frozen(mesh), abstract_batch(config, mesh)
    )


def _bytes_of_parts(state: Any, frozen: Any, batch: Any) -> dict[str, int]:
    parts = {"parameters": state.params, "averaged parameters": state.ema}
    parts["optimizer"] = state.opt_state
    if state.adversary is not None:
        parts["discriminator and its optimizer"] = state.adversary
    if state.rate is not None:
        parts["prior of the rate and its optimizer"] = state.rate
    if state.codebooks:
        parts["averages of the codebooks"] = state.codebooks
    parts |= {"frozen networks": frozen, "batch": batch}
    return {name: bytes_of_device(tree) for name, tree in parts.items() if tree}


def plan(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Compiles the training step for a mesh, see `compile_step`, and says what a run will need.

    Args:
      config: a finalised config.
      mesh: the mesh.

    Returns:
      What JSON can hold. ``state_bytes``: bytes on each device by part of the state; ``memory``:
      see `bsq_jax.training.compiled.Memory`; ``flops``: see `bsq_jax.training.useful_flops`;
      ``computed_flops_per_device``, ``collectives`` and ``sent``: see
      `bsq_jax.training.compiled.Work`.

    Raises:
      DoesNotFitError: the program does not fit into a device's memory.
      UserError: the batch does not divide.
    """
    step = compile_step(config, mesh)
    with _for(mesh):
        task = make_task(config)
        state, frozen = task.abstract_state(mesh), task.abstract_frozen(mesh)
        batch = abstract_batch(config, mesh)
        flops = step_flops(task, state, batch, frozen)
    second = sum(leaf.size for leaf in jax.tree.leaves(getattr(state.adversary, "params", ())))
    return {
        "name": config.name,
        "mesh": "x".join(str(size) for size in mesh.shape.values()),
        "compiled_for": f"{mesh.size} {mesh.devices.flat[0].device_kind} devices",
        "batch_size": batch["pixels"].shape[0],
        "size": list(batch["pixels"].shape[2:4]),
        "several_sizes": bool(config.data.sizes),
        "steps": config.train.steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "discriminator": f" and a discriminator of {second / 1e6:.1f}M" if second else "",
        "state_bytes": _bytes_of_parts(state, frozen, batch),
        "memory": {**dataclasses.asdict(step.memory), "peak": step.memory.peak},
        "flops": flops,
        "flops_per_device": flops / mesh.size,
        "computed_flops_per_device": step.work.flops,
        "collectives": step.work.collectives,
        "sent": step.work.sent,
    }
