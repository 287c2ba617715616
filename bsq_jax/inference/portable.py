"""A tokenizer's encode and decode as programs of `jax.export`, which run without this package.

Each is one program for all of `PLATFORMS`. Networks are written differently for a CPU
(`bsq_jax.core.cpu`) and ask for full float32 products elsewhere, so every platform has a branch of
its own, traced for it; XLA compiles the one of the platform that it compiles for. The number of
examples is open, and so are height and width where `why_one_size` finds no reason against it.

The attention is that of XLA: calls of cuDNN and Pallas kernels are for one generation of devices,
and `jax.export` guarantees no compatibility for them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.target import described, platform
from bsq_jax.inference.checked_arrays import least_batch
from bsq_jax.inference.computation import Computation
from bsq_jax.inference.prepared import cast_matrices, frame_by_frame
from bsq_jax.inference.size_classes import padding_is_free
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.positions import MOST_PLACES
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape

# Platform of JAX -> what `bsq_jax.core.target.described` is told.
PLATFORMS: Mapping[str, str] = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}
PROGRAMS = ("encode", "decode")
MOST_EXAMPLES = 2**16
"""Of a call; JAX cannot compare sizes of arrays without a limit."""

# What the other program alone uses.
_OTHERS = {"encode": ("decoder", "from_latent"), "decode": ("encoder", "to_latent")}

Weights = Mapping[str, Any]
Function = Callable[[Weights, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Portable:
    """The programs of a tokenizer.

    Attributes:
      shape: of the model.
      frames: of a clip; 1 for pictures, which then have no axis of time.
      size: (height, width) in pixels, or None where they are open.
      fixed: why they are not open, for people to read; empty where they are, or were given.
      functions: by name of the program, of its weights and an array, see `PROGRAMS`:
        ``encode`` maps uint8 pixels ``[batch, (time,) height, width, 3]`` to uint8 bits
        ``[batch, (time,) row, column, L]``, ``decode`` maps bits to pixels.
      weights: likewise, float32 arrays by name.
    """

    shape: TokenizerShape
    frames: int
    size: tuple[int, int] | None
    fixed: str
    functions: Mapping[str, Function]
    weights: Mapping[str, dict[str, np.ndarray]]

    def exported(self, program: str) -> jax.export.Exported:
        """A program for all of `PLATFORMS`.

        Its symbolic dimensions are ``batch`` and, in tokens, ``rows`` and ``columns``.

        Args:
          program: one of `PROGRAMS`.

        Raises:
          UserError: it cannot be exported.
        """
        function = _for_each_platform(self.functions[program])
        try:
            return jax.export.export(jax.jit(function), platforms=tuple(PLATFORMS))(
                {key: _like(leaf) for key, leaf in self.weights[program].items()},
                jax.ShapeDtypeStruct(self.given(program), jnp.uint8),
            )
        except UserError:
            raise
        except Exception as error:  # whatever tracing and lowering somebody's own parts raises
            said = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{program} cannot be exported as StableHLO ({type(error).__name__}: {said})"
                + ("" if self.size else "; try one size of pictures: --size HxW")
            ) from error

    def given(self, program: str) -> tuple[Any, ...]:
        """The shape of what a program is given, numbers and symbols."""
        high, wide = self.shape.patch
        limits = [f"{name} <= {number}" for name, number in self.most.items()]
        sides: list[Any]
        last: tuple[Any, ...]
        batch, *sides = jax.export.symbolic_shape(", ".join(self.most), constraints=limits)
        if self.size:
            sides = [self.size[0] // high, self.size[1] // wide]
        if program == "encode":
            time, last = self.frames, (sides[0] * high, sides[1] * wide, 3)
        else:
            time, last = self.shape.token_frames(self.frames), (*sides, self.shape.bits)
        return (batch, time, *last) if self.clips else (batch, *last)

    @property
    def most(self) -> dict[str, int]:
        """The highest numbers that symbols may stand for, by name."""
        sides = {} if self.size else {"rows": MOST_PLACES, "columns": MOST_PLACES}
        return {"batch": MOST_EXAMPLES, **sides}

    @property
    def clips(self) -> bool:
        """Whether arrays have an axis of time: those of a video model."""
        return self.shape.frames > 1

    def computed(self, program: str, array: np.ndarray) -> np.ndarray:
        """What a program gives on a CPU, compiled for this array by itself, without `jax.export`.

        Raises:
          UserError: JAX has no CPU here.
        """
        try:
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError as error:
            raise UserError(
                "the self-test is computed on the CPU, which JAX was told to leave out: add cpu to "
                "JAX_PLATFORMS"
            ) from error
        with jax.default_device(device), described("cpu"):
            function = jax.jit(self.functions[program])
            return np.asarray(function(self.weights[program], array))


def make_portable(
    tokenizer: Tokenizer,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
) -> Portable:
    """The programs of a tokenizer, in the dtype that it computes in.

    Args:
      tokenizer: of any device; the programs do not depend on it.
      size: (height, width) in pixels of all pictures; None: open or, see `why_one_size`, the
        model's own.
      frames: of all clips of a video model; None: the model's longest.

    Raises:
      UserError: the size or number of frames is none of the model's, or `jax.export` lacks a
        package.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("jax.export needs the package flatbuffers: pip install flatbuffers")
    shape = tokenizer.shape
    frames = shape.frames if frames is None else frames
    fixed = "" if size else why_one_size(shape)
    if fixed:
        size = shape.image_height, shape.image_width
    if size and (min(size) < 1 or size[0] % shape.patch[0] or size[1] % shape.patch[1]):
        sides = "x".join(map(str, shape.patch))
        raise UserError(f"size {size[0]}x{size[1]}: give multiples of the patch, {sides}")
    if frames < 1:
        raise UserError(f"{frames} frames: give 1 or more")
    with described("cpu"):
        # Positions for so many frames, or an error that says why there are none.
        shape.frame_positions(shape.token_frames(frames), grid=_grid(shape, size))
        model = _without_kernels(tokenizer.model)
    dtype = tokenizer.config.model.dtype
    flat = {"/".join(key): np.asarray(x) for key, x in flatten_dict(tokenizer.params).items()}
    return Portable(
        shape,
        frames,
        size,
        fixed,
        {name: _function(model, dtype, name) for name in PROGRAMS},
        {
            name: {k: x for k, x in flat.items() if k.split("/")[0] not in _OTHERS[name]}
            for name in PROGRAMS
        },
    )


def why_one_size(shape: TokenizerShape) -> str:
    """Why one program cannot be for pictures of all sizes, in a few words; empty where it can."""
    if shape.positions == "learned":
        return "learned positions are interpolated anew for each size"
    if ":" in shape.positions:
        return f"model.positions={shape.positions} gives its numbers for one size at a time"
    if not padding_is_free(shape):
        return (
            "attention sees whole frames (model.spatial_window=0), and how it is computed depends "
            "on their size"
        )
    return ""


def _grid(shape: TokenizerShape, size: tuple[int, int] | None) -> tuple[int, int]:
    return (size[0] // shape.patch[0], size[1] // shape.patch[1]) if size else shape.grid


def _without_kernels(model: TokenizerModel) -> TokenizerModel:
    """The model with attention that is computed by XLA."""
    if model.attention in ("cudnn", "splash"):
        say_once(
            f"model.attention={model.attention} is for one kind of device: the exported programs "
            "compute the same attention by XLA's operations (auto)"
        )
        model = model.clone(attention="auto")
    return frame_by_frame(model)


def _function(model: TokenizerModel, dtype: str, program: str) -> Function:
    """One of `Portable.functions`; asks for the platform while it is traced."""
    shape, clips = model.shape, model.shape.frames > 1
    down, across = shape.patch if program == "encode" else (1, 1)

    def function(weights: Weights, x: jax.Array) -> jax.Array:
        nested = unflatten_dict({tuple(key.split("/")): leaf for key, leaf in weights.items()})
        used, batch = model, x.shape[0]
        if platform() != "cpu" and model.attention == "auto":
            used = model.clone(attention="dense")  # what auto is, but for cuDNN
        compute = Computation(used, None).functions["uint8" if program == "decode" else program]
        x = x if clips else x[:, None]
        if platform() == "cpu":
            x = _filled(x, x.shape[2] // down * (x.shape[3] // across))
        made = compute(cast_matrices(nested, dtype), x, None)[:batch]
        return made if clips else made[:, 0]

    return function


def _filled(x: jax.Array, tokens: Any) -> jax.Array:
    """Examples, the last one repeated until they have enough tokens, see `least_batch`."""
    if isinstance(tokens, int):
        missing = least_batch(tokens) - 1
    else:  # more than needed, of small pictures: JAX cannot compare quotients of products
        missing = jax.core.max_dim(least_batch(1) - tokens, 0)
    if isinstance(missing, int) and not missing:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(x[-1:], (missing, *x.shape[1:]))])


def _for_each_platform(function: Function) -> Function:
    """The function with a branch for each of `PLATFORMS`, traced for that platform."""

    def traced_for(name: str) -> Function:
        def branch(weights: Weights, x: jax.Array) -> jax.Array:
            with described(name):
                return function(weights, x)

        return branch

    branches = {name: traced_for(kind) for name, kind in PLATFORMS.items()}

    def every(weights: Weights, x: jax.Array) -> jax.Array:
        made: jax.Array = jax.lax.platform_dependent(weights, x, **branches)
        return made

    return every


def _like(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
