"""Which layout of a mesh suits a training step: each is compiled, and the best is named.

The layers of a network are one loop in its program, so the whole depth takes no longer to compile
than a part of it: nothing is extrapolated.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.cli.planning.machines import GIB, Machine
from bsq_jax.cli.planning.table import UTILIZATION, size
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.text import aligned
from bsq_jax.training.step_cost import DoesNotFitError, compile_step, state_bytes

_MOST_TENSOR = 8  # its exchanges are within layers: more than the devices of a node do not pay


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one layout of the mesh needs.

    Attributes:
      mesh: sizes of data, fsdp and tensor.
      fits: whether it does not exceed the limit.
      memory: peak bytes on a device, or at least so many where `whole` is False.
      whole: whether it was compiled; one whose state alone exceeds the limit is not.
      sent: bytes that a device sends in a step, see `bsq_jax.training.compiled.Work`.
      flops: FLOPs of a device in a step as compiled, see there.
      seconds: of a step, an estimate.
    """

    mesh: tuple[int, int, int]
    fits: bool
    memory: int
    whole: bool = True
    sent: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def layouts_of(devices: int, heads: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """Sizes of data, fsdp and tensor that a step may have.

    Args:
      devices: their number.
      heads: attention heads, which the tensor axis splits.
      batch: examples of a micro-batch, which the other two split.
    """
    for tensor in range(1, min(devices, _MOST_TENSOR) + 1):
        if devices % tensor or heads % tensor:
            continue
        rest = devices // tensor
        for fsdp in range(1, rest + 1):
            if rest % fsdp == 0 and batch % rest == 0:
                yield rest // fsdp, fsdp, tensor


def estimate(flops: float, sent: float, machine: Machine) -> float:
    """Seconds of a step, as if products came first and exchanges after them."""
    return flops / (UTILIZATION * machine.peak) + sent / machine.bandwidth


def compare(
    config: ConfigDict, devices: Sequence[Any], machine: Machine, limit: int
) -> Iterator[Layout]:
    """Compiles the step of a finalised config for every layout of the devices.

    Args:
      config: of any task.
      devices: here or only described.
      machine: what they are, or stand for.
      limit: bytes of memory of a device.

    Raises:
      UserError: there is no layout.
    """
    batch = config.train.batch_size // config.train.accumulate
    heads = config[_NETWORKS[config.task]].heads
    found = list(layouts_of(len(devices), heads, batch))
    if not found:
        raise UserError(
            f"{len(devices)} devices have no layout: {batch} examples of a micro-batch and {heads} "
            "heads divide over none of them; change train.batch_size or the number of devices"
        )
    for sizes in found:
        print("mesh {}x{}x{}".format(*sizes), file=sys.stderr, flush=True)
        mesh = make_mesh(*sizes, devices=devices)
        least = sum(state_bytes(config, mesh).values())
        if least > limit:
            yield Layout(sizes, fits=False, memory=least, whole=False)
            continue
        try:
            step = compile_step(config, mesh)
        except DoesNotFitError:
            yield Layout(sizes, fits=False, memory=least, whole=False)
            continue
        memory, work = step.memory.peak, step.work
        seconds = estimate(work.flops, work.sent, machine)
        yield Layout(sizes, memory <= limit, memory, True, work.sent, work.flops, seconds)


# Task -> the section of its network.
_NETWORKS = {"tokenizer": "model", "prior": "prior", "masked_lm": "masked_lm"}


def rank(found: Iterable[Layout]) -> list[Layout]:
    """What fits before what does not; of the former the fastest first, then the smallest."""

    def place(layout: Layout) -> tuple[Any, ...]:
        if layout.fits:
            return False, layout.seconds, layout.memory, layout.mesh
        return True, not layout.whole, layout.memory, layout.mesh

    return sorted(found, key=place)


def table(config: ConfigDict, rows: Sequence[Layout], machine: Machine, limit: int) -> str:
    """The layouts as text for a terminal, the best first, and what to do."""
    head = ("mesh", "memory", "share", "sent", "TFLOP", "a step, estimated")
    lines = aligned([head, *(_cells(row, limit) for row in rows)])
    best, name = rows[0], "data x fsdp x tensor"
    if best.fits:
        data, fsdp, tensor = best.mesh
        lines.append(
            f"best of {name}, for {machine.kind}: --config.mesh.data={data} "
            f"--config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"
        )
    else:
        lines.append(
            f"no layout fits into {limit / GIB:.4g} GiB: {'x'.join(map(str, best.mesh))} needs "
            f"{'' if best.whole else 'more than '}{size(best.memory).strip()}. {advice(config)}"
        )
    return "\n".join(lines)


def advice(config: ConfigDict) -> str:
    """What makes a step smaller, in the order of what it costs."""
    ways = []
    if config.train.batch_size > config.train.accumulate:
        more = config.train.accumulate * 2
        ways.append(f"--config.train.accumulate={more} (now {config.train.accumulate})")
    if config.model.remat != "full":
        ways.append(f"--config.model.remat=full (now {config.model.remat})")
    ways += ["a smaller train.batch_size", "more devices, which fsdp then splits the state over"]
    return f"Try {', '.join(ways[:-1])}, or {ways[-1]}"


def _cells(row: Layout, limit: int) -> tuple[str, ...]:
    mesh = "x".join(map(str, row.mesh))
    memory = size(row.memory).strip()
    share = f"{row.memory / limit:.1%}"
    if not row.whole:
        return mesh, f"> {memory}", f"> {share}", "", "", "does not fit"
    sent, flops = size(row.sent).strip(), f"{row.flops / 1e12:.4g}"
    seconds = f"{row.seconds:.3g} s" if row.fits else "does not fit"
    return mesh, memory, share, sent, flops, seconds


def as_json(rows: Sequence[Layout], machine: Machine, limit: int) -> dict[str, Any]:
    """What JSON can hold."""
    found = [dataclasses.asdict(row) for row in rows]
    return {"device": machine.kind, "limit": limit, "layouts": found}
