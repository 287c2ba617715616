"""Whether the programs of a config are what an accelerator should run: ``plan --check``.

Every program is lowered for the platform, and compiled where there is a compiler for it. A
violation is a line: a program that does not lower or compile, an implementation of attention that
is not the platform's, a product in float32 where the config computes in 16 bits, and whatever waits
for the host.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bsq_jax.cli.planning.programs import Program, programs_of
from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.core.target import described
from bsq_jax.models.attention.choice import Noted, noted_choices
from bsq_jax.training.compiled import compile_briefly, memory, work
from bsq_jax.training.lowered import Lowered, Product, callbacks, read

# Platform of JAX -> what `bsq_jax.core.target.described` is told: a Hopper GPU and a recent cuDNN.
# CPUs are there for what they can compile: memory and what devices exchange.
PLATFORMS: Mapping[str, tuple[Any, ...]] = {
    "cuda": ("gpu", (9, 0), 91100),
    "tpu": ("tpu",),
    "cpu": ("cpu",),
}
ACCELERATORS = ("cuda", "tpu")

_WHOLE = "a prior computes whole numbers in float32, the same on every device"
# Part of a product's name, behind that of its program -> why it is in float32 whatever the config
# computes in.
ALLOWED: Mapping[str, str] = {
    "/to_latent/": "rounding the latents would change the signs that are the tokens",
    "TokenizerModel.quantize": "quantizers compute in float32",
    "Discriminator)": "the last layers of a discriminator, as its authors compute them",
    "/positions/": "learned positions of another size are interpolated in float32",
    "Prior": _WHOLE,
    "with the prior": _WHOLE,
}
_FLASH = "__cudnn$fmha"  # what cuDNN's calls of flash attention are called


@dataclasses.dataclass(frozen=True)
class Checked:
    """What is known of a program on a platform.

    Attributes:
      program: its name.
      platform: a key of `PLATFORMS`.
      attention: an implementation and the clips that it computes, ``dense (1 x 64 tokens)``.
      allowed: products in float32 that are meant, how many by reason.
      violations: what is not as it should be, a line each.
      calls: custom calls, how many by target.
      memory: bytes on a device, see `bsq_jax.training.compiled.Memory`; None without a compiler.
      collectives: see `bsq_jax.training.compiled.Work`; None without a compiler.
      flops: likewise.
    """

    program: str
    platform: str
    attention: tuple[str, ...] = ()
    allowed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    violations: tuple[str, ...] = ()
    calls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, int] | None = None
    collectives: Mapping[str, tuple[int, int]] | None = None
    flops: float | None = None


def check(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    platforms: Sequence[str] = ACCELERATORS,
    *,
    compiles: bool = False,
) -> Iterator[Checked]:
    """Checks all programs of a finalised config.

    Args:
      config: of any task.
      mesh: of devices that are here or only described.
      platforms: keys of `PLATFORMS`.
      compiles: compile too what is lowered for the devices of the mesh: TPUs or CPUs.
    """
    compiled_for = mesh.devices.flat[0].platform if compiles else ""
    for platform in platforms:
        with described(*PLATFORMS[platform]), cpu.layers_in_a_loop():
            for program in programs_of(config, mesh):
                yield _checked(program, config, platform, compiles=platform == compiled_for)


def _checked(program: Program, config: ConfigDict, platform: str, *, compiles: bool) -> Checked:
    result = Checked(program.name, platform)
    with noted_choices() as noted:
        try:
            traced = program.trace()
            if called := callbacks(traced):
                lines = tuple(f"waits for the host: {each}" for each in called)
                return dataclasses.replace(result, violations=lines)
            lowered = traced.lower(lowering_platforms=(platform,))
        except UserError as error:
            return dataclasses.replace(result, violations=(f"does not lower: {error}",))
        except Exception as error:  # whatever a lowering rule raises
            return dataclasses.replace(result, violations=(f"does not lower: {_line(error)}",))
    found = read(lowered)
    wide, allowed = collections.Counter[str](), collections.Counter[str]()
    if jnp.dtype(config.model.dtype).itemsize == 2 and platform in ACCELERATORS:
        wide, allowed = sort_products(found.products, program.name)
    violations = [
        *(f"waits for the host: {each}" for each in found.transfers),
        *attention_violations(noted, found, platform),
        *(f"float32 product, {times} times: {name}" for name, times in wide.items()),
    ]
    result = dataclasses.replace(
        result,
        attention=tuple(_clip(each) for each in noted),
        allowed=dict(allowed),
        calls=dict(found.calls),
    )
    if compiles:
        try:
            compiled = compile_briefly(lowered, platform)
        except jax.errors.JaxRuntimeError as error:
            violations.append(f"does not compile: {_line(error)}")
        else:
            of_memory, of_work = memory(compiled), work(compiled)
            result = dataclasses.replace(
                result,
                memory={**dataclasses.asdict(of_memory), "peak": of_memory.peak},
                collectives=of_work.collectives,
                flops=of_work.flops,
            )
    return dataclasses.replace(result, violations=tuple(violations))


def sort_products(
    products: Iterable[Product], program: str = ""
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Products in float32 of a program that should compute in 16 bits.

    Returns:
      Those that are not meant, how many by name and operands, and those that are, by reason.
    """
    wide: collections.Counter[str] = collections.Counter()
    allowed: collections.Counter[str] = collections.Counter()
    for product in products:
        if not product.wide:
            continue
        name = f"{program} {product.name}"
        reason = next((why for part, why in ALLOWED.items() if part in name), None)
        if reason is None:
            wide[f"{product.name} of {' and '.join(product.operands)}"] += 1
        else:
            allowed[reason] += 1
    return wide, allowed


def attention_violations(noted: Iterable[Noted], found: Lowered, platform: str) -> Iterator[str]:
    """What is wrong with the implementations of attention of a program.

    Args:
      noted: what attention was traced for.
      found: the program's operations.
      platform: a key of `PLATFORMS`.
    """
    if platform not in ACCELERATORS:
        return
    flash = sum(times for target, times in found.calls.items() if target.startswith(_FLASH))
    for each in noted:
        name, why = each.choice
        asked = f"model.attention={each.asked}; take auto"
        if name == "by_head":
            yield f"attention {_clip(each)} is for a CPU's cache ({asked})"
        elif name == "splash" and platform != "tpu":
            yield f"attention {_clip(each)}: {why} ({asked})"
        elif platform == "cuda" and each.dtype.itemsize == 2 and name != "cudnn":
            yield f"attention {_clip(each)}: {why or asked}"
        elif name == "cudnn" and not flash:
            yield f"attention {_clip(each)} is not in the program"


def _clip(noted: Noted) -> str:
    return f"{noted.choice.name} ({noted.frames} x {noted.tokens} tokens)"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
