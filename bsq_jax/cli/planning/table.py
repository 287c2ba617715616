"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsq_jax.cli.planning.machines import GIB, MACHINES

UTILIZATION = 0.4  # of the peak, for estimates of time


def against(name: str | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """How the run compares with what a kind of device has; arithmetic, not a measurement."""
    if name not in MACHINES:
        return {}
    machine = MACHINES[name]
    seconds = result["flops_per_device"] / (UTILIZATION * machine.peak)
    return {
        "device": machine.kind,
        "device_memory": machine.memory * GIB,
        "seconds_per_step": seconds,
        "examples_per_second": result["batch_size"] / seconds,
        "days": result["steps"] * seconds / 86400,
    }


def size(value: float) -> str:
    """Bytes in words."""
    return f"{value / GIB:10.3f} GiB" if value >= GIB // 10 else f"{value / 2**20:10.3f} MiB"


def table(result: Mapping[str, Any]) -> str:
    """The plan as text for a terminal."""
    rows: list[tuple[str, str]] = [("bytes on each device", "")]
    for name, value in result["state_bytes"].items():
        rows.append((f"  {name}", size(value)))
    memory = result["memory"]
    rows.append(("  outputs besides the state", size(memory["results"])))
    rows.append(("  temporary: activations, gradients", size(memory["temporary"])))
    rows.append(("  peak total", size(memory["peak"])))
    if "device" in result:
        share = memory["peak"] / result["device_memory"]
        rows.append((f"  of the memory of {result['device']}", f"{share:10.1%}"))
    rows.append(("useful FLOPs of a step", f"{result['flops']:10.4g}"))
    rows.append(("  of one device", f"{result['flops_per_device']:10.4g}"))
    rows.append(("communication per step and device", ""))
    for kind, (times, count) in result["collectives"].items():
        rows.append((f"  {kind}, {times} times", size(count)))
    if not result["collectives"]:
        rows.append(("  none", ""))
    if "device" in result:
        rows.append((f"arithmetic for {result['device']} at {UTILIZATION:.0%} of its peak", ""))
        rows.append(("  a step", f"{result['seconds_per_step']:10.3g} s"))
        rows.append(("  examples a second", f"{result['examples_per_second']:10.4g}"))
        rows.append((f"  {result['steps']} steps", f"{result['days']:10.3g} days"))
    width = max(len(name) for name, _ in rows) + 2
    of = " of {}x{}, the largest".format(*result["size"]) if result["several_sizes"] else ""
    head = (
        f"{result['name']}: {result['parameters'] / 1e6:.1f}M parameters"
        f"{result['discriminator']}, global batch {result['batch_size']}{of}, mesh "
        f"{result['mesh']} of {result['compiled_for']}"
    )
    return "\n".join([head, *(f"{name:<{width}}{value}".rstrip() for name, value in rows)])
