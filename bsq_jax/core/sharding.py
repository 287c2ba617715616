"""The device mesh, and where every array lives on it.

The mesh has three axes. ``data`` splits the batch and copies the parameters, ``fsdp`` splits both
(each device gathers a layer's parameters when it needs them), ``tensor`` splits the matrices of a
layer. The global batch is split over ``data`` and ``fsdp`` together.

Parameters carry logical axis names, given where they are made; `LOGICAL_AXES` says which mesh axis
a name goes to. Three sizes are kept apart throughout: *global* (the whole run), *local* (what this
process feeds) and *per device*.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis. A name that is absent is not split.
LOGICAL_AXES: dict[str, str] = {
    "embed": "fsdp",
    "codes": "fsdp",  # of a learned codebook
    "heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices of the run.

    Args:
      data: size of the data axis; -1 takes the devices that the other two leave.
      fsdp: size of the axis that splits parameters and batch.
      tensor: size of the axis that splits matrices.
      devices: the devices to use; all of the run's by default.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        raise UserError(
            f"mesh {data}x{fsdp}x{tensor}: sizes must be positive (data may be -1 for the rest)"
        )
    if data == -1:
        data = max(len(devices) // (fsdp * tensor), 1)
    if data * fsdp * tensor != len(devices):
        raise UserError(
            f"mesh {data}x{fsdp}x{tensor} (data x fsdp x tensor) needs {data * fsdp * tensor} "
            f"devices, but there are {len(devices)}: change config.mesh"
        )
    # Auto axes: Linen's logical constraints do not work on the Explicit ones make_mesh defaults to.
    return jax.make_mesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def describe_devices(mesh: Mesh) -> str:
    """The devices of all hosts and the mesh, in words."""
    sizes = "x".join(str(size) for size in mesh.shape.values())
    return f"{jax.device_count()} {jax.devices()[0].platform} device(s), mesh {sizes}"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces the global batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The rows of the global batch that this process feeds: piece `index` of `count`."""

    index: int
    count: int


def host_shard(mesh: Mesh, global_batch: int) -> HostShard:
    """Which contiguous piece of the global batch this process must load.

    Read off the sharding itself, so it also holds when the tensor axis spans processes, which
    then load the same rows.

    Raises:
      UserError: the batch does not divide, or this process's rows are not one aligned piece.
    """
    shards = batch_shards(mesh)
    if global_batch % shards:
        raise UserError(
            f"global batch {global_batch} does not divide over {shards} devices "
            f"(data x fsdp): make it a multiple of {shards}"
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((global_batch,))
    rows = {index[0].indices(global_batch)[:2] for index in indices.values() if index}
    start, stop = min(r[0] for r in rows), max(r[1] for r in rows)
    size = stop - start
    if sum(b - a for a, b in rows) != size or global_batch % size or start % size:
        raise UserError(
            "this process's devices hold scattered rows of the batch: "
            "choose mesh sizes that keep each host's devices together on data and fsdp"
        )
    return HostShard(start // size, global_batch // size)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places this process's rows of a batch and returns the global arrays they are part of."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places arrays that all processes hold alike, whole, on every device of the mesh."""

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(
            array.shape, replicated(mesh), lambda index: array[index]
        )

    return jax.tree.map(place, tree)


def abstract_replicated(tree: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of what `replicate` makes of arrays or shapes."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def split_by_batch(x: jax.Array) -> jax.Array:
    """An activation, its leading axis over `BATCH_AXES` and whole along all others.

    Without it XLA may choose to spread activations by channel, as the parameters lie under fsdp,
    and sum partial products of every layer over the devices. It holds where `on_mesh` is entered,
    and where the batch divides.
    """
    mesh = _mesh_inside()
    if mesh is None or x.shape[0] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def whole(x: jax.Array) -> jax.Array:
    """A parameter that every device gathers before it is used, where `on_mesh` is entered.

    For those that XLA would else leave split, to exchange the much larger results.
    """
    if _mesh_inside() is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def each_on_its_own(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of arrays ``[batch, head, ...]`` that every device runs on its examples and heads.

    For what XLA cannot split by itself: loops over the examples or heads, and kernels. The function
    must treat each example and head alone, and return ``[batch, head, ...]`` too. As
    `split_by_batch` it does something where `on_mesh` is entered. What the mesh does not divide,
    such as the single example that parameters are made with, every device computes whole.
    """

    def split(*arrays: jax.Array) -> jax.Array:
        batch, heads = arrays[0].shape[:2]
        mesh = _mesh_inside()
        if mesh is None:
            return function(*arrays)
        axis = LOGICAL_AXES["heads"]
        spec = PartitionSpec(
            None if batch % batch_shards(mesh) else BATCH_AXES,
            None if heads % mesh.shape[axis] else axis,
        )
        return jax.shard_map(
            function, mesh=mesh, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False
        )(*arrays)

    return split


def _mesh_inside() -> AbstractMesh | None:
    """The mesh of `on_mesh`, where it is entered and has several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None  # one device, or already a program for each
    return mesh


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The same function, in which `split_by_batch` and `each_on_its_own` know the mesh."""

    @functools.wraps(function)
    def inside(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return inside


def jit_on(mesh: Mesh, function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit`` of a function of arrays on a mesh: every program of several devices is made here.

    Args:
      mesh: the run's mesh.
      function: of positional arguments, arrays that lie on the mesh; without any, `options` give
        ``out_shardings`` on it.
      **options: of `jax.jit`.
    """
    return jax.jit(on_mesh(function, mesh), **options)


def to_host(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole, on every process (a collective call)."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def gather_strings(strings: Sequence[str]) -> list[str]:
    """The distinct strings of all processes, sorted (a collective call)."""
    if jax.process_count() == 1:
        return sorted(set(strings))
    mine = np.frombuffer(json.dumps(list(strings)).encode(), np.uint8)
    sizes = np.ravel(to_host(np.asarray([mine.size], np.int32)))
    padded = np.zeros((1, int(sizes.max())), np.uint8)
    padded[0, : mine.size] = mine
    rows = to_host(padded).reshape(len(sizes), -1)
    lists = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return sorted({string for each in lists for string in each})


def parameter_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of parameters from the logical axis names they were made with.

    Args:
      boxed: tree from ``jax.eval_shape(module.init, ...)`` whose leaves are Linen's boxes with
        logical names (leaves without a box are replicated).
      mesh: the mesh.

    Returns:
      The same tree without boxes, a `NamedSharding` at each leaf. An axis that its mesh axis does
      not divide stays whole, and the log says so.
    """
    whole: set[tuple[str, str, int]] = set()

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        axes: list[str | None] = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            axis = LOGICAL_AXES.get(name) if name else None
            fits = axis is not None and axis not in axes and size % mesh.shape[axis] == 0
            if axis is not None and size % mesh.shape[axis]:
                whole.add((axis, str(name), size))
            axes.append(axis if fits else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    shardings = jax.tree.map(
        sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    for axis, name, size in sorted(whole):
        say_once(
            f"mesh.{axis}={mesh.shape[axis]} does not divide axes '{name}' of size {size}: "
            "parameters are whole along them on every device"
        )
    return shardings
