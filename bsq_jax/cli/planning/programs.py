"""The programs of a config: what training, evaluation, coding and sampling compile.

Nothing is allocated and nothing runs: arguments are shapes, except for the numbers that positions
and random streams are made from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bsq_jax.coding.prior_coder import make_prior_coder
from bsq_jax.core.sharding import (
    abstract_replicated,
    batch_sharding,
    batch_shards,
    jit_on,
    make_mesh,
    replicated,
)
from bsq_jax.inference.computation import Computation
from bsq_jax.inference.prepared import cast_matrices, frame_by_frame
from bsq_jax.inference.stream_programs import Programs
from bsq_jax.models.factory import make_prior, make_tokenizer
from bsq_jax.models.masked_lm.sampler import Sampler, Sampling
from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.training.state import jit_step
from bsq_jax.training.step_cost import abstract_batch, make_task


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, and the shapes of what it is called with.

    Attributes:
      name: what it does.
      function: a jitted function.
      arguments: positional.
      options: by keyword.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def trace(self) -> Any:
        """A ``jax.stages.Traced``."""
        return self.function.trace(*self.arguments, **self.options)


def programs_of(config: ConfigDict, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """The programs of a finalised config; each is made when it is asked for.

    Those of training, evaluation and sampling are for the mesh. Coding runs on one device.

    Args:
      config: of any task.
      mesh: of devices that are here or only described.
    """
    task = make_task(config)
    state, frozen = task.abstract_state(mesh), task.abstract_frozen(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jit_step(task, mesh, shardings)
    yield Program("training step", step, (state, abstract_batch(config, mesh), frozen))
    evaluate = jit_on(mesh, task.evaluate_step, out_shardings=replicated(mesh))
    inputs = (state.params, _evaluated(config, mesh))
    yield Program("evaluation step", evaluate, inputs + (() if _codes(config) else (frozen,)))
    if config.task == "prior":
        yield from _prior_coding(config, state.params)
    if config.task == "masked_lm":
        yield from _sampling(config, task, mesh, abstract_replicated(state.params, mesh), frozen)
    if _codes(config):
        one = make_mesh(devices=[mesh.devices.flat[0]])
        yield from _coding(config, abstract_replicated(state.params, one), one)


def _codes(config: ConfigDict) -> bool:
    return config.task == "tokenizer"


def _evaluated(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the evaluation, of clips of the model's length."""
    shards = batch_shards(mesh)
    count = -(-config.eval.batch_size // shards) * shards
    like = abstract_batch(config, mesh)
    frames = like["pixels"].shape[1]
    shapes = {"pixels": (count, frames, *config.model.image_size, 3)}
    if frames > 1 or not _codes(config):
        shapes["frames"] = (count,)
    if "label" in like:
        shapes |= {"label": (count,), "index": (count,)}
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(
            shape, jnp.uint8 if name == "pixels" else jnp.int32, sharding=sharding
        )
        for name, shape in shapes.items()
    }


def _sampling(
    config: ConfigDict, task: Any, mesh: jax.sharding.Mesh, params: Any, frozen: Any
) -> Iterator[Program]:
    sampling = Sampling(**config.sampling.to_dict(), unit=config.masked_lm.mask_unit)
    sampler = Sampler(task.model, task.tokenizer, sampling, mesh)
    for name, (function, arguments) in sampler.programs(params, frozen).items():
        yield Program(name, function, arguments)


def _coding(config: ConfigDict, params: Any, mesh: jax.sharding.Mesh) -> Iterator[Program]:
    """Encoding and decoding as the Python API runs it."""
    model = frame_by_frame(make_tokenizer(config))
    shape, params = model.shape, cast_matrices(params, config.model.dtype)
    computation = Computation(model, params)
    frames = shape.frames
    tokens = shape.grid[0] * shape.grid[1]
    batch = computation.max_batch(shape.token_frames(frames), tokens)
    pixels, bits = _coded(shape, batch, frames, mesh)
    for name, given in (("encode", pixels), ("uint8", bits)):
        function = jax.jit(computation.functions[name])
        yield Program(_SAYS[name], function, (params, given, None))
    if frames == 1 or not shape.visibility.streams:
        return
    programs = Programs(model, params, computation.classes)
    time = shape.patch_time
    for name, half in (("encode", "encoder"), ("uint8", "decoder")):
        function = jax.jit(programs.functions[name])
        first, x = _coded(shape, batch, 1, mesh), _coded(shape, batch, 1 + time, mesh)
        index = 0 if half == "encoder" else 1
        begin = shape.frame_positions(1, 0, shape.grid, half)
        _, past = jax.eval_shape(function, params, first[index], begin, None, None)
        past = abstract_replicated(past, mesh)
        after = _after_first(x[index], time if half == "encoder" else 1)
        positions = shape.frame_positions(1, 1, shape.grid, half)
        yield Program(f"{_SAYS[name]} a stream", function, (params, after, positions, past, None))


_SAYS = {"encode": "encoding", "uint8": "decoding"}


def _coded(
    shape: TokenizerShape, batch: int, frames: int, mesh: jax.sharding.Mesh
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Pixels and bits of clips of so many frames."""
    size = (shape.image_height, shape.image_width, 3)
    pixels = (batch, frames, *size)
    bits = (batch, shape.token_frames(frames), *shape.grid, shape.bits)
    whole = replicated(mesh)
    one, other = (jax.ShapeDtypeStruct(x, jnp.uint8, sharding=whole) for x in (pixels, bits))
    return one, other


def _after_first(x: jax.ShapeDtypeStruct, frames: int) -> jax.ShapeDtypeStruct:
    shape = (x.shape[0], frames, *x.shape[2:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)


def _prior_coding(config: ConfigDict, params: Any) -> Iterator[Program]:
    """Encoding and decoding a frame of tokens as a codec runs it.

    A coder feeds its programs from the host. So it is run, with programs that give zeros: any bytes
    decode to a frame then.
    """
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    shape = make_tokenizer(config).shape
    coder = make_prior_coder(make_prior(config), zeros)
    stream = coder.stream(*shape.grid, shape.bits)
    found: dict[str, _Call] = {}
    for attribute, value in list(vars(coder).items()):
        if hasattr(value, "eval_shape"):
            setattr(coder, attribute, functools.partial(_noted, found, value))
    frame = np.zeros((*shape.grid, shape.bits), np.uint8)
    phases = {
        "encoding with the prior": lambda: stream.encode(frame, Encoder()),
        "decoding with the prior": lambda: stream.decode(Decoder(b"")),
    }
    for phase, run in phases.items():
        found.clear()
        run()
        for number, (function, arguments, options) in enumerate(found.values(), 1):
            name = f"{phase}, {number}" if number > 1 else phase
            yield Program(name, function, arguments, options)


_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]  # function, arguments, keywords


def _noted(found: dict[str, _Call], function: Any, *arguments: Any, **options: Any) -> Any:
    """Notes a call of a jitted function, once for the shapes of it, and gives zeros."""
    shapes = jax.tree.map(jax.typeof, arguments)
    found[str((id(function), shapes, options))] = function, arguments, options
    out = function.eval_shape(*arguments, **options)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), out)
