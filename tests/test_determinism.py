"""One key for runs that are the same to the bit on GPUs. Oracle: XLA, which ends a process that
gives it a flag it does not know, and the program of a step, which must hold nothing that the flag
refuses."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from test_plan import SECOND_PLAYER, config_of

from bsq_jax import main
from bsq_jax.core import distributed
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.target import described
from bsq_jax.training import determinism
from bsq_jax.training import step_cost as planning
from bsq_jax.training.state import jit_step

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.fixture
def fresh(monkeypatch):
    """As if no backend had started yet."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=2")
    monkeypatch.setattr(determinism, "backends_started", lambda: False)


def test_the_flag_is_added_to_those_that_are_there(fresh, monkeypatch):
    determinism.ask_for()
    assert os.environ["XLA_FLAGS"] == f"--xla_gpu_autotune_level=2 {FLAG}"
    determinism.ask_for()
    assert os.environ["XLA_FLAGS"].count(FLAG) == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    determinism.ask_for()
    assert os.environ["XLA_FLAGS"].endswith(f"=false {FLAG}")  # XLA takes the last


def test_xla_knows_the_flag():
    program = (
        "import os, jax\nfrom bsq_jax.training import determinism\ndeterminism.ask_for()\n"
        "jax.devices()\nprint(os.environ['XLA_FLAGS'])"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == FLAG


def test_the_command_asks_before_jax_starts(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(determinism, "ask_for", lambda: order.append("asked"))

    def started(*_):
        order.append("started")
        raise UserError("enough")

    monkeypatch.setattr(distributed, "initialize", started)
    config = os.path.join(os.path.dirname(__file__), "tiny.py")
    words = ["--config", config, "--workdir", str(tmp_path)]
    for more, wanted in (([], ["started"]), (["true"], ["asked", "started"])):
        order.clear()
        with pytest.raises(UserError, match="enough"):
            main.run([*words, *(f"--config.train.deterministic={value}" for value in more)])
        assert order == wanted


def test_too_late_on_a_gpu_is_one_line(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.devices()
    determinism.ask_for()  # on a CPU there is nothing to ask for
    assert os.environ["XLA_FLAGS"] == ""
    with described("gpu"), pytest.raises(UserError, match=rf"set XLA_FLAGS={FLAG} before"):
        determinism.ask_for()


def test_what_the_log_says(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert determinism.described(False) == ""
    assert determinism.described(True) == "train.deterministic: nothing to do on a cpu"
    with described("gpu"):
        assert determinism.described(False).startswith("not deterministic: ")
        monkeypatch.setenv("XLA_FLAGS", FLAG)
        assert determinism.described(True).startswith(f"deterministic ({FLAG}): ")


@pytest.mark.parametrize(
    "words",
    [
        ("--config.loss.perceptual=0.1", *SECOND_PLAYER),
        ("--config.loss.adversarial=0.1", "--config.discriminator.name=patchgan"),
    ],
)
def test_a_step_has_nothing_that_the_flag_refuses(words):
    """XLA has no deterministic kernel for the gradient of a window maximum."""
    config = config_of(*words, "--config.model.image_size=32")
    mesh = make_mesh(devices=jax.devices()[:1])
    task = planning.make_task(config)
    state, frozen = task.abstract_state(mesh), task.abstract_frozen(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = planning.abstract_batch(config, mesh)
    text = str(jit_step(task, mesh, shardings).trace(state, batch, frozen).jaxpr)
    assert "dot_general" in text
    assert "select_and_scatter" not in text
    pooled = jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum())
    assert "select_and_scatter" in str(jax.make_jaxpr(pooled)(jnp.zeros((1, 4, 4, 1))))
