"""The full-size tokenizer on one accelerator. Run ``python -m benchmarks.accelerator``.

Inference, training, kinds of attention, and peers: the same network in plain PyTorch and a
convolutional autoencoder of the size of SDXL's, which the paper (arXiv 2406.07548) finds 2.4 times
slower. It needs jax, flax, optax, chex, einops and numpy alone; PyTorch where it is there. Weights
are random, and what a part has measured is printed at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accelerator_bench import Bench
from benchmarks.compare import compare
from benchmarks.conv_autoencoder import ConvAutoencoder
from benchmarks.peer import add_flags, start
from benchmarks.timing import command, in_turn, machine, repeated, sustained
from benchmarks.work import flops as products_flops
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.losses import L1, L2, Perceptual, ReconstructionLoss
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.discriminators import StyleGanDiscriminator
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.training import compiled, flops
from bsq_jax.training.optimizer import clip_each_parameter, decays
from bsq_jax.training.state import jit_step
from bsq_jax.training.tasks.adversarial import AdversarialTraining
from bsq_jax.training.tasks.tokenizer import TokenizerTask
from bsq_jax.training.useful_flops import step_flops

PARTS = ("inference", "training", "attention", "convolutional", "torch")
R1_EVERY = 16
SPELL = 0.5  # seconds that a timing should take at least


def seconds(functions: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of a call of each. They alternate; each timing is of many calls in a row."""
    many = {name: sustained(repeated(each), SPELL) for name, each in functions.items()}
    return in_turn(many, runs)


def inference(bench: Bench) -> None:
    """Encoding, decoding, and both."""
    model, batch = bench.model(), bench.args.batch
    x = jnp.asarray(bench.pixels(batch), jnp.float32) / 127.5 - 1
    params = jax.jit(model.init)(jax.random.key(0), x[:1])
    bits = jnp.zeros((batch, 1, *bench.shape.grid, bench.shape.bits), jnp.uint8)
    counted = model.clone(attention="blocked", blocking=Blocking.FOR_COUNTING)
    methods = {"encode": (x, "encode"), "decode": (bits, "decode"), "encode + decode": (x, None)}
    functions, work = {}, {}
    for name, (data, method) in methods.items():

        def apply(p: Any, d: Any, model: Any = model, method: Any = method) -> Any:
            out = model.apply(p, d, method=method)
            return out.pixels if method is None else getattr(out, "bits", out)

        jitted = jax.jit(apply)
        functions[name] = lambda f=jitted, d=data: f(params, d)
        work[name] = flops.count(lambda p, d, a=apply: a(p, d, counted), params, data) / batch
    for name, took in seconds(functions, bench.args.runs).items():
        bench.add("inference", f"{name}, batch {batch}", batch / took, work[name])


def _reconstruct(model: Any) -> Callable[[Any, jax.Array], jax.Array]:
    return lambda params, x: model.apply(params, x).pixels


def training(bench: Bench) -> None:
    """A step on the pixel losses alone, and one of the full recipe with its lazy R1."""
    batch, mesh = bench.args.train_batch, make_mesh(devices=jax.devices()[:1])
    tasks = {"step, L1 + entropy": _task(bench, None)}
    if bench.args.size >= 32:
        adversarial = AdversarialTraining(
            StyleGanDiscriminator(bench.args.channel_base, 512, 4, bench.dtype),
            optax.adamw(1e-4),
            weight=0.1,
            kind="non_saturating",
            start=0,
            adaptive=False,
            r1=10.0,
            r1_every=R1_EVERY,
            lecam=0.0,
            lecam_decay=0.999,
            clip_frames=0,
        )
        tasks["step, full recipe with a share of R1"] = _task(bench, adversarial)
    for name, task in tasks.items():
        _time_training(bench, name, task, batch, mesh)


def _task(bench: Bench, adversarial: AdversarialTraining | None) -> TokenizerTask:
    losses: tuple[ReconstructionLoss, ...] = (L1(1.0), L2(0.0))
    if adversarial is not None:
        losses += (Perceptual(0.1, bench.dtype),)
    return TokenizerTask(
        model=bench.model().clone(remat=bench.args.remat),
        optimizer=optax.chain(
            clip_each_parameter(1.0), optax.adamw(1e-4, 0.9, 0.99, weight_decay=1e-4, mask=decays)
        ),
        schedule=optax.constant_schedule(1e-4),
        losses=losses,
        entropy_weight=optax.linear_schedule(0.3, 0.1, 2000),
        adversarial=adversarial,
        flip=0.0,
        ema_decay=0.999,
        ema_warmup=True,
        accumulate=1,
        seed=0,
    )


def _time_training(bench: Bench, name: str, task: Any, batch: int, mesh: Any) -> None:
    step = _Step(bench, task, batch, mesh)
    work = step_flops(task, step.state, *step.inputs) / batch
    every = R1_EVERY if task.adversarial is not None else 1
    peak = compiled.memory(step.compiled).peak

    def steps() -> Any:
        for _ in range(every):
            watched = step()
        return watched

    took = seconds({name: steps}, bench.args.runs)[name] / every
    label = f"{name}, batch {batch}, remat {bench.args.remat}"
    bench.add("training", label, batch / took, work, memory_gib=round(peak / 2**30, 2))


class _Step:
    """A compiled training step with its state: each call is one on the same batch."""

    def __init__(self, bench: Bench, task: Any, batch: int, mesh: Any):
        self.state = task.init_state(mesh)
        rng = np.random.default_rng(0)
        # Random weights in place of VGG16's: their values change nothing about the speed.
        frozen = jax.tree.map(
            lambda leaf: jax.device_put(
                rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype), leaf.sharding
            ),
            task.abstract_frozen(mesh),
        )
        self.inputs = to_global({"pixels": bench.pixels(batch)}, mesh), frozen
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        self.compiled = jit_step(task, mesh, shardings).lower(self.state, *self.inputs).compile()

    def __call__(self) -> Any:
        self.state, watched = self.compiled(self.state, *self.inputs)
        return watched


def attention(bench: Bench) -> None:
    """Encoding and decoding with each kind of attention that this device has."""
    batch = bench.args.batch
    x = jnp.asarray(bench.pixels(batch), jnp.float32) / 127.5 - 1
    params = jax.jit(bench.model().init)(jax.random.key(0), x[:1])
    kinds = ["dense", "by_head"]
    kinds += ["cudnn"] if jax.default_backend() == "gpu" and bench.dtype.itemsize == 2 else []
    functions = {}
    for kind in kinds:
        jitted = jax.jit(_reconstruct(bench.model(kind)))
        functions[kind] = lambda f=jitted: f(params, x)
    for kind, took in seconds(functions, bench.args.runs).items():
        bench.add("attention", f"{kind}, encode + decode, batch {batch}", batch / took, None)


def convolutional(bench: Bench) -> None:
    """The convolutional peer on the same pictures, in turn with the tokenizer."""
    batch, model, peer = bench.args.batch, bench.model(), ConvAutoencoder(bench.dtype)
    x = jnp.asarray(bench.pixels(batch), jnp.float32) / 127.5 - 1
    ours = jax.jit(model.init)(jax.random.key(0), x[:1])
    theirs = jax.jit(peer.init)(jax.random.key(0), x[:1, 0])
    run_ours, run_theirs = jax.jit(_reconstruct(model)), jax.jit(peer.apply)
    took = seconds(
        {"ours": lambda: run_ours(ours, x), "theirs": lambda: run_theirs(theirs, x[:, 0])},
        bench.args.runs,
    )
    work = flops.count(peer.apply, theirs, x[:1, 0])
    ratio = round(took["theirs"] / took["ours"], 2)
    label = f"autoencoder of SDXL's size, batch {batch}"
    bench.add("convolutional", label, batch / took["theirs"], work, tokenizer_is_faster_by=ratio)


def torch(bench: Bench) -> None:
    """The same network in plain PyTorch, in turn with ours, and the limit of the products."""
    for train, batch in ((False, bench.args.batch), (True, bench.args.train_batch)):
        what = f"{'step, L1 + entropy' if train else 'encode + decode'}, batch {batch}"
        work = bench.work(batch, train=train)
        run: Callable[[], Any]
        if train:
            run = _Step(bench, _task(bench, None), batch, make_mesh(devices=jax.devices()[:1]))
        else:
            x = jnp.asarray(bench.pixels(batch), jnp.float32) / 127.5 - 1
            params = jax.jit(bench.model().init)(jax.random.key(0), x[:1])
            run = functools.partial(jax.jit(_reconstruct(bench.model())), params, x)
        args = bench.args
        found = compare({"ours": run}, work, bench.peer, args.runs, args.torch_modes, SPELL)
        needed = products_flops(work) / batch
        bench.add("torch", f"{what}, ours", batch / found.ours["ours"], needed)
        for mode, took in found.peer.items():
            ratio = round(took / found.ours["ours"], 2)
            label = f"{what}, PyTorch {mode}"
            bench.add("torch", label, batch / took, needed, ours_is_faster_by=ratio)
        bench.add("torch", f"{what}, the products alone", batch / found.limit.seconds(), needed)


@contextlib.contextmanager
def _saved(bench: Bench) -> Iterator[None]:
    """Writes what was found, also where a part fails."""
    try:
        yield
    finally:
        if bench.args.json is not None:
            settings = {k: v for k, v in vars(bench.args).items() if k != "json"}
            found: dict[str, Any] = {"machine": machine(), "command": command()}
            found |= {
                "settings": settings,
                "peer": bench.peer and bench.peer.text,
                "rows": bench.rows,
            }
            bench.args.json.write_text(json.dumps(found, indent=2) + "\n")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the parts that fit into the time; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12, help="of each half")
    parser.add_argument("--batch", type=int, default=128, help="of inference")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--channel-base", type=int, default=32768, help="of the discriminator")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--budget", type=float, default=360.0, help="seconds after which no part begins"
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    add_flags(parser)
    args = parser.parse_args(argv)
    began = time.monotonic()
    heads = max(args.width // 64, 1)
    shape = TokenizerShape(
        args.size, args.size, frames=1, patch_size=8, bits=36, width=args.width, layers=args.layers,
        heads=heads, mlp_ratio=4.0, head_hidden=4 * args.width, head_channels=0,
        positions="learned", causality="block_causal", window=0, min_bits=0, prefixes=(36,),
        channels=36,
    )  # fmt: skip
    parts = {part.__name__: part for part in (inference, training, attention, convolutional, torch)}
    with start(args.torch_python if "torch" in args.only else "") as peer:
        bench = Bench(args, shape, [], peer)
        print(f"{args.size}x{args.size}, 36 bits, {args.dtype}, random weights ({machine()})")
        with _saved(bench):
            for name in args.only:
                if time.monotonic() - began > args.budget:
                    print(
                        f"{name:<14}left out: {args.budget:.0f} s (--budget) are over", flush=True
                    )
                    continue
                try:
                    parts[name](bench)
                except jax.errors.JaxRuntimeError as error:  # out of memory: others may still fit
                    reason = " ".join(str(error).split())[:200]
                    print(f"{name:<14}failed: {reason}", flush=True)
    return bench.rows


if __name__ == "__main__":
    main()
