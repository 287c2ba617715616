"""What a run will need. Oracle: arrays on devices, the process's own memory, HLO by hand."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bsq_jax import cli
from bsq_jax.config import finalize, load_config_file, set_overrides
from bsq_jax.core.sharding import make_mesh
from bsq_jax.training import step_cost as planning
from bsq_jax.training.compiled import memory, work, work_of
from bsq_jax.training.hlo import message

DEVICES = 8

TESTS = pathlib.Path(__file__).parent
TINY = str(TESTS / "tiny.py")
SECOND_PLAYER = ("--config.loss.adversarial=0.1", "--config.discriminator.channel_base=64")


def config_of(*words, argument=""):
    config = load_config_file(f"{TINY}{argument}")
    set_overrides(config, words)
    return finalize(config)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_bytes_of_the_state_are_those_that_a_device_holds(sizes):
    mesh = make_mesh(*sizes)
    task = planning.make_task(config_of(*SECOND_PLAYER))
    abstract, state = task.abstract_state(mesh), task.init_state(mesh)
    for name in ("params", "ema", "opt_state", "adversary"):
        held = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(getattr(state, name))
        )
        assert planning.bytes_of_device(getattr(abstract, name)) == held, name


def test_shapes_of_frozen_networks_are_theirs():
    mesh = make_mesh()
    task = planning.make_task(config_of("--config.loss.perceptual=0.1"))
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), task.load_frozen(mesh))
    abstract = task.abstract_frozen(mesh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == like


def test_the_plan_of_a_tokenizer(tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = ["--config", TINY, "--mesh", "2x2x2", "--device", "h100", "--json", str(file)]
    assert cli.main(["plan", *words, *SECOND_PLAYER]) == 0
    result = json.loads(file.read_text())
    assert result["mesh"] == "2x2x2"
    state = result["state_bytes"]
    assert state["optimizer"] > 2 * state["parameters"] == 2 * state["averaged parameters"]
    memory = result["memory"]
    # Arguments that the program has no use for are not counted by it; the step's number is not in
    # a part of the state.
    assert sum(state.values()) * 0.9 <= memory["arguments"] <= sum(state.values()) + 4
    assert memory["peak"] == memory["arguments"] + memory["results"] + memory["temporary"]
    assert result["flops_per_device"] * 8 == result["flops"]
    seconds = result["flops_per_device"] / (0.4 * 989e12)
    np.testing.assert_allclose(result["examples_per_second"], result["batch_size"] / seconds)
    text = capsys.readouterr().out
    for words in ("mesh 2x2x2 of 8 cpu", "discriminator and its optimizer", "all-gather, ", "h100"):
        assert words in text.replace("NVIDIA H100", "h100")


@pytest.mark.parametrize("attention", ["dense", "by_head"])
def test_under_fsdp_parameters_travel_and_activations_stay(attention):
    """Twice the batch moves no more bytes: all that moves is of the size of the parameters."""
    mesh, moved, largest = make_mesh(1, 8, 1), [], []
    for batch_size in (64, 128):
        words = (f"--config.model.attention={attention}", f"--config.train.batch_size={batch_size}")
        found = planning.plan(config_of(*words, "--config.optimizer.ema=0"), mesh)
        moved.append(sum(count for _, count in found["collectives"].values()))
        largest.append(found["parameters"] * 4)
    # The statistics of bits and the like are a few bytes.
    assert abs(moved[1] - moved[0]) < 0.02 * moved[0]
    assert moved[0] < 5 * largest[0]


@pytest.mark.parametrize("argument", [":prior", ":masked_lm"])
def test_models_of_tokens_need_no_tokenizer_to_be_planned(argument):
    config = load_config_file(f"{TINY}{argument}=described")
    result = planning.plan(finalize(config), make_mesh(4, 2, 1))
    assert result["state_bytes"]["frozen networks"] > 0
    assert result["flops"] > 0


MEASURE = """
import re, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_plan import config_of
from bsq_jax.training import step_cost as planning
from bsq_jax.training.compiled import memory
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.training.state import jit_step

def status(name):
    text = open("/proc/self/status").read()
    return int(re.search(name + r":\\s+(\\d+)", text)[1]) * 1024

config, mesh = config_of(*sys.argv[2:]), make_mesh()
task, batch = planning.make_task(config), planning.abstract_batch(config, mesh)
abstract, frozen = task.abstract_state(mesh), task.load_frozen(mesh)
shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
step = jit_step(task, mesh, shardings).lower(abstract, batch, frozen).compile()
empty = status("VmRSS")
state = task.init_state(mesh)
data = to_global({name: np.ones(leaf.shape, leaf.dtype) for name, leaf in batch.items()}, mesh)
jax.block_until_ready((state, data))
open("/proc/self/clear_refs", "w").write("5")  # the highest use counts from here
jax.block_until_ready(step(state, data, frozen))
print(status("VmHWM") - empty, memory(step).peak)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is read on Linux")
@pytest.mark.parametrize("size", [(192, 24)])
def test_peak_memory_is_what_a_process_uses(size):
    width, batch = size
    words = [f"--config.model.{key}" for key in (f"width={width}", "heads=4", "layers=4")]
    words += ["--config.model.image_size=64", f"--config.train.batch_size={batch}"]
    words += ["--config.data.resize=64", "--config.data.eval_resize=64"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(TESTS), *words],
        **{"env": environment, "cwd": TESTS.parent, "capture_output": True, "text": True},
        check=True,
        timeout=200,
    )
    measured, planned = map(int, done.stdout.split())
    assert planned > 200 * 2**20
    np.testing.assert_allclose(planned, measured, rtol=0.2)


F32, BF16, S32, TUPLE = 11, 16, 4, 13  # of XLA's PrimitiveType


def shape(kind, *dimensions):
    return {"element_type": kind, "dimensions": dimensions}


def tuple_of(*shapes):
    return {"element_type": TUPLE, "tuple_shapes": shapes}


def program(*computations):
    """A module of computations ``(name, instructions)``, the last one the entry.

    An instruction is a dict; its id is its place in all of the program, from 0.
    """
    module, number = message("Module")(), 0
    for place, (name, instructions) in enumerate(computations):
        made = module.computations.add(name=name, id=place)
        for each in instructions:
            made.instructions.append(message("Instruction")(id=number, **each))
            made.root_id, number = number, number + 1
    module.entry_computation_id = len(computations) - 1
    return module


def test_operations_between_devices_by_hand():
    body = [
        {"opcode": "parameter", "shape": shape(F32, 8, 4)},
        {"opcode": "all-gather", "shape": shape(F32, 16, 4), "operand_ids": [0]},
        {
            "opcode": "all-gather-start",
            "shape": tuple_of(shape(F32, 8, 4), shape(F32, 16, 4)),
            "operand_ids": [0],
        },
        {"opcode": "all-gather-done", "shape": shape(F32, 16, 4), "operand_ids": [2]},
    ]
    branch = [{"opcode": "collective-permute", "shape": shape(BF16, 8)}]
    both = tuple_of(shape(F32, 8), shape(BF16, 3, 2))
    told = b'{"known_trip_count":{"n":"5"}}'
    entry = [
        {"opcode": "all-reduce", "shape": both},
        {"opcode": "while", "called_computation_ids": [0, 2], "backend_config": told},
        {"opcode": "conditional", "called_computation_ids": [1, 1]},
    ]
    found = work_of(program(("body", body), ("branch", branch), ("condition", []), ("main", entry)))
    assert found.collectives == {
        "all-gather": (10, 10 * 16 * 4 * 4),
        "all-reduce": (1, 8 * 4 + 6 * 2),
        "collective-permute": (2, 2 * 8 * 2),
    }
    assert found.sent == 10 * 256 + 2 * 44 + 2 * 16


def test_operations_between_tpus_by_hand():
    """A loop tells its length in its condition alone; a reduce-scatter is written as a sum."""
    scatter = [
        {"opcode": "parameter", "shape": shape(F32, 64, 4)},
        {"opcode": "all-reduce", "shape": shape(F32, 64, 4), "operand_ids": [0]},
        {"opcode": "dynamic-slice", "shape": shape(F32, 16, 4), "operand_ids": [1]},
    ]
    body = [
        {"opcode": "all-gather", "shape": shape(BF16, 16, 4)},
        {"opcode": "fusion", "shape": shape(F32, 16, 4), "called_computation_ids": [0]},
    ]
    condition = [
        {"opcode": "constant", "shape": shape(S32), "literal": {"s32s": [6]}},
        {"opcode": "get-tuple-element", "shape": shape(S32)},
        {"opcode": "compare", "operand_ids": [6, 5], "comparison_direction": "LT"},
    ]
    entry = [{"opcode": "while", "called_computation_ids": [1, 2]}]
    parts = ("all-reduce-scatter.1", scatter), ("body", body), ("cond", condition), ("main", entry)
    found = work_of(program(*parts))
    assert found.collectives == {
        "all-gather": (6, 6 * 16 * 4 * 2),
        "reduce-scatter": (6, 6 * 16 * 4 * 4),
    }
    assert found.sent == 6 * 16 * 4 * 2 + 6 * 64 * 4 * 4


def test_flops_of_a_program():
    """Of the program as compiled: what a loop repeats, and a convolution without its padding."""

    def products(x, kernel, picture):
        y = jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=3)[0]
        return y, jax.lax.conv(picture, kernel, (1, 1), "SAME")

    shapes = ((8, 8), (5, 3, 3, 3), (2, 3, 6, 6))
    given = [jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes]
    found = work(jax.jit(products).lower(*given).compile())
    taps = (3 * 6 - 2) ** 2  # along an axis the first and the last pixel have two of three
    assert found.flops == 3 * 2 * 8**3 + 2 * 2 * 5 * 3 * taps
    assert (found.collectives, found.sent) == ({}, 0)


@pytest.mark.smoke
def test_results_that_lie_where_arguments_lay_count_once():
    """A step as it is jitted: a state that is given away, and a number besides."""
    state = jax.ShapeDtypeStruct((1000,), jnp.float32)
    step = jax.jit(lambda x: (x + 1, x.sum()), donate_argnums=0).lower(state).compile()
    found = memory(step)
    assert (found.arguments, found.results) == (4000, 4 + 16)  # and a table of two pointers
    assert found.peak == found.arguments + found.results + found.temporary


def test_operations_between_devices_of_a_program():
    """A sum over devices in each of five turns of a loop."""
    mesh = make_mesh()

    def looped(x):
        def turn(c, _):
            return c + jax.lax.psum(c, "data"), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    spec = PartitionSpec("data")
    function = jax.jit(
        jax.shard_map(looped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = work(function.lower(x).compile())
    assert found.collectives == {"all-reduce": (5, 5 * 16 * 4)}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --config"),
        (("--config", TINY, "--mesh", "best"), "give --device, whose memory"),
        (("--config", TINY, "--mesh", "best", "--device", "h100"), "give --devices N"),
        (("--config", TINY, "--mesh", "1x1x1", "--devices", "2"), "are for --mesh best"),
        (("--config", TINY, "--mesh", "best", "--check"), "--check takes no --mesh best"),
        (("--config", TINY, "--mesh", "1x1x1", "--devices", "0"), "are for --mesh best"),
        (("--config", TINY, "--mesh", "best", "--memory", "0"), "--memory 0: give more than 0"),
        (("--config", TINY, "--check", "--device", "h100"), "--check takes no --device"),
        (("--config", TINY, "--mesh", "4x2"), "write three sizes, such as 4x2x1"),
        (("--config", TINY, "--mesh", "0x1x1"), "write three sizes, such as 4x2x1"),
        (("--config", TINY), "how many devices are there"),
        (("--config", TINY, "--mesh", "3x1x1"), "train.batch_size 8 does not divide"),
        (("--config", TINY, "--mesh", "8x8x8"), "the mesh has 512 devices"),
        (("--config", TINY, "--mesh", "1x1x1", "--device", "abacus"), "invalid choice: 'abacus'"),
        (("--config", TINY, "--mesh", "1x1x1", "--confg.x=1"), "--confg.x: did you mean --config?"),
        (("--config", TINY, "--topology", "abacus:1x1", "--mesh", "1x1x1"), "--topology abacus:1"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert cli.main(["plan", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
