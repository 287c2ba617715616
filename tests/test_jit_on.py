"""Programs of several devices are made by `jit_on`, so that kernels are split by us, not by XLA.

Oracle: XLA for a described slice of TPUs where libtpu is installed; else the program itself.
"""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_plan import config_of

import bsq_jax
from bsq_jax.core.sharding import each_on_its_own, jit_on, make_mesh, replicated
from bsq_jax.training import step_cost as planning

DEVICES = 8

PACKAGE = pathlib.Path(bsq_jax.__file__).parent
# Where `jax.jit` itself may stand, and why.
ALLOWED = {
    "core/sharding.py": "jit_on",
    "inference/portable.py": "is written for one device",
    "inference/size_classes.py": "runs on one device",
    "training/starter.py": "runs on one device",
    "coding/neighbourhood_coder.py": "runs on one device",
    "coding/tile_prior_coder.py": "runs on one device",
    "coding/rate_distortion.py": "runs on one device",
    "cli/planning/programs.py": "lowers programs that run on one device",
    "cli/studies/entropy/terms.py": "runs on one device",
    "cli/studies/quantization_error/errors.py": "runs on one device",
    "cli/studies/quantization_error/inputs.py": "runs on one device",
    "quantizers/leech.py": "inside the programs that call it; a test has several devices",
}


def jits(source):
    """Lines that name ``jax.jit`` or one of its kin, called or not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap"):
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jax":
            found += [node.lineno for a in node.names if a.name in ("jit", "pjit", "pmap")]
    return found


def test_no_program_is_made_beside_jit_on():
    files = {str(f.relative_to(PACKAGE)): jits(f.read_text()) for f in PACKAGE.rglob("*.py")}
    having = {name for name, lines in files.items() if lines}
    assert having == set(ALLOWED)
    assert jits("import jax\nx = jax.jit(f)") == [2]
    assert jits("import functools, jax\n@functools.partial(jax.jit)\ndef f(): pass") == [2]
    assert jits("from jax import jit\n") == [1]


SPLASH = (
    *("--config.model.image_size=64", "--config.model.patch_size=4", "--config.model.frames=2"),
    *("--config.model.attention=splash", "--config.model.causality=full"),
    *("--config.model.layers=1", "--config.data.frames=2", "--config.train.batch_size=8"),
)


def kernels(jaxpr, inside=False):
    """For each Pallas kernel in a program whether it lies within a shard_map."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(inside)
            continue
        within = inside or equation.primitive.name == "shard_map"
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=callable):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += kernels(inner, within)
    return found


def steps(mesh):
    """The evaluation steps of a tokenizer and of a masked model, and abstract arguments of each."""
    task = planning.make_task(config := config_of(*SPLASH))
    batch = planning.abstract_batch(config, mesh)
    yield task.evaluate_step, (task.abstract_state(mesh).params, batch)
    words = ("--config.data.frames=1", "--config.model.frames=1", "--config.masked_lm.frames=1")
    config = config_of(*SPLASH, *words, argument=":masked_lm=described")
    task, batch = planning.make_task(config), planning.abstract_batch(config, mesh)
    batch["index"] = batch["label"]
    frozen = task.abstract_frozen(mesh)
    yield task.evaluate_step, (task.abstract_state(mesh).params, batch, frozen)


def test_kernels_of_evaluation_are_split_by_hand():
    mesh = make_mesh(4, 1, 2)
    for step, arguments in steps(mesh):
        program = jit_on(mesh, step, out_shardings=replicated(mesh)).trace(*arguments)
        found = kernels(program.jaxpr.jaxpr)
        assert found
        assert all(found)
        assert not any(kernels(jax.jit(step).trace(*arguments).jaxpr.jaxpr))


COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
from bsq_jax.cli.planning.devices import described_tpus
devices = described_tpus("v5e:2x2")
from bsq_jax.core.sharding import jit_on, make_mesh, replicated
from bsq_jax.core.target import described
from test_jit_on import steps
mesh = make_mesh(2, 1, 2, devices=devices)
with described("tpu"):
    for step, arguments in steps(mesh):
        lowered = jit_on(mesh, step, out_shardings=replicated(mesh)).lower(*arguments)
        assert "tpu_custom_call" in lowered.as_text()
        lowered.compile()
        print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_evaluation_with_splash_attention_compiles_for_several_tpus():
    words = [sys.executable, "-c", COMPILE, str(pathlib.Path(__file__).parent)]
    # libtpu does not know the flags that tests give to XLA for CPUs.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.count("compiled") == 2, done.stderr[-2000:]


@pytest.mark.parametrize(("batch", "heads"), [(8, 2), (1, 2), (8, 3), (3, 3)])
def test_what_the_mesh_does_not_divide_is_computed_whole(batch, heads):
    mesh = make_mesh(4, 1, 2)
    x = np.random.default_rng(0).normal(size=(batch, heads, 5)).astype(np.float32)

    def function(x):
        assert x.shape[0] == (batch if batch % 4 else batch // 4)
        assert x.shape[1] == (heads if heads % 2 else heads // 2)
        return jnp.sin(x)

    out = jit_on(mesh, each_on_its_own(function), out_shardings=replicated(mesh))(x)
    np.testing.assert_allclose(out, np.sin(x), rtol=1e-5)
