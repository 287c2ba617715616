"""Runs and evaluations from given weights. Oracle: those weights, and the run they come from."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bsq_jax import main
from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh, replicated
from bsq_jax.core.trees import leaves
from bsq_jax.training import train_run
from bsq_jax.training.export import save_export
from bsq_jax.training.initial_state import place, start_from
from bsq_jax.training.saved_models import load_saved_model
from bsq_jax.training.state import DiscriminatorState, TrainState
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.workdir import read_config, write_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


def run(*words):
    assert main.run([*map(str, words)]) == 0


def message_of(*words):
    with pytest.raises(UserError) as raised:
        main.run([*map(str, words)])
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The workdir of a run of three steps."""
    workdir = tmp_path_factory.mktemp("initial") / "first"
    run("--config", TINY, "--workdir", workdir, "--config.train.steps=3")
    return workdir


@pytest.fixture(scope="module")
def export(first):
    """Both sets of its weights as an export."""
    initial = load_saved_model(first)
    folder = first.parent / "export"
    save_export(folder, initial.config, initial.weights, origin={"step": initial.step})
    return folder


def assert_same(one, other):
    chex.assert_trees_all_equal(one, other, strict=True)


def test_a_workdir_and_its_export_hold_the_same(first, export):
    one, other = load_saved_model(first), load_saved_model(export)
    assert list(one.weights) == list(other.weights) == ["raw", "ema"]
    assert one.step == other.step == 3
    assert one.config.to_dict() == other.config.to_dict()
    assert_same(one.weights, other.weights)
    assert list(load_saved_model(first, ("ema",)).weights) == ["ema"]


def test_an_export_is_evaluated_like_its_run(first, export, capsys):
    run("--mode", "evaluate", "--workdir", export)
    reports = [json.loads((path / "evaluation.json").read_text()) for path in (first, export)]
    assert reports[0]["results"] == reports[1]["results"]
    assert reports[1]["step"] == 3
    assert f"{export.name}, step 3" in capsys.readouterr().out
    words = ("--mode", "evaluate", "--workdir", export, "--config.model.bits=5")
    assert "holds another model (model.bits: 6 -> 5)" in message_of(*words)


@pytest.mark.parametrize("origin", ["first", "export"])
def test_a_new_run_starts_from_given_weights(request, tmp_path, capsys, origin):
    path = request.getfixturevalue(origin)
    # Without --config, the config is that of the weights; another seed gives other random ones.
    words = ("--workdir", tmp_path / "run", f"--config.train.init={path}", "--config.seed=5")
    run(*words, "--config.train.steps=1")
    err = capsys.readouterr().err
    assert f"from {path}: parameters (raw) and averaged parameters (ema)" in err
    given, trained = load_saved_model(path), load_saved_model(tmp_path / "run")
    assert (trained.config.name, trained.step) == ("tiny", 1)
    assert read_config(tmp_path / "run").train.init == str(path)
    start = leaves(given.weights["raw"])
    for name, array in leaves(trained.weights["raw"]).items():
        assert np.abs(array - start[name]).max() <= 1.1e-3, name  # the learning rate
    if origin == "export":
        return
    # What is resumed is the run's own checkpoint, which says what it began from.
    words = ("--config", TINY, "--workdir", tmp_path / "run", "--config.train.steps=2")
    message = message_of(*words, "--config.train.init=/no/such")
    assert f"began from {path}, not from train.init=/no/such: leave train.init out" in message
    run(*words, "--config.train.checkpoint_every=1")
    err = capsys.readouterr().err
    assert "resuming at step 1" in err
    assert "train.init" not in err
    assert read_config(tmp_path / "run").train.init == str(path)
    before, trained = trained, load_saved_model(tmp_path / "run")
    assert trained.config.train.init == str(path)
    raw, average = leaves(trained.weights["raw"]), leaves(before.weights["ema"])
    for name, array in leaves(trained.weights["ema"]).items():  # the average still has no warm-up
        wanted = 0.9 * average[name] + 0.1 * raw[name]
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-7)
    message = message_of("--config", TINY, "--workdir", path, "--config.train.init=/no/such")
    assert "began from random weights, not from train.init=/no/such: leave train.init" in message


def test_a_rate_that_followed_the_batch_follows_that_of_the_new_run(tmp_path, monkeypatch):
    config = load_config_file(TINY)
    config.optimizer.learning_rate = None
    weights = {"raw": {"w": np.zeros(2, np.float32)}}
    save_export(tmp_path / "kept", config, weights, origin={})
    save_export(tmp_path / "derived", finalize(config), weights, origin={})
    write_config(tmp_path / "run", finalize(config))
    config.optimizer.learning_rate = 1e-3
    save_export(tmp_path / "given", finalize(config), weights, origin={})
    seen = []
    monkeypatch.setattr(train_run, "train", lambda config, workdir, **_: seen.append(config) or 0)
    for name in ("kept", "derived", "run", "given"):
        words = (f"--config.train.init={tmp_path / name}", "--config.train.batch_size=64")
        run("--workdir", tmp_path / "new", *words)
    rates = [config.optimizer.learning_rate for config in seen]
    assert rates == pytest.approx([4e-7 * 64] * 3 + [1e-3], rel=1e-12)


@pytest.mark.parametrize("kind", ["prior", "masked_lm"])
def test_an_average_that_comes_along_is_kept(first, tmp_path, kind, capsys):
    """Of models of tokens too, in the new run and in what resumes it."""
    path, new = tmp_path / "given", tmp_path / "new"
    words = ("--config", f"{TINY}:{kind}={first}", "--config.train.checkpoint_every=1")
    if kind == "masked_lm":  # the pictures of the tokenizer
        words += ("--config.data.source=synthetic", "--config.masked_lm.classes=0")
    run(*words, "--workdir", path, "--config.train.steps=2")
    before = load_saved_model(path).weights["ema"]
    for steps in (1, 2):
        init = f"--config.train.init={path}" if steps == 1 else "--config.train.log_every=2"
        run(*words, "--workdir", new, f"--config.train.steps={steps}", init)
        found = load_saved_model(new).weights
        raw, before = leaves(found["raw"]), leaves(before)
        for name, array in leaves(found["ema"]).items():
            wanted = 0.9 * before[name] + 0.1 * raw[name]
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-7, err_msg=name)
        before = found["ema"]
    assert f"from {path}: parameters (raw) and averaged" in capsys.readouterr().err


def test_mistakes(first, export, tmp_path):
    words = ("--config", TINY, "--workdir", tmp_path / "run")
    message = message_of(*words, f"--config.train.init={first}", "--config.model.bits=5")
    assert message.startswith(f"{first} (train.init) holds another model (model.bits: 6 -> 5): ")
    assert "no/such is not the workdir of a run" in message_of(
        *words, "--config.train.init=/no/such"
    )
    assert not (tmp_path / "run" / "config.json").exists()
    for more in ((), ("--config", TINY)):
        assert f"{export} is an export: give another --workdir with" in message_of(
            "--workdir", export, *more
        )


@pytest.mark.usefixtures("eight_devices")
def test_arrays_land_as_the_mesh_wants_them():
    mesh = make_mesh(fsdp=2, tensor=2)
    abstract = make_tokenizer_task(finalize(load_config_file(TINY))).abstract_state(mesh).params
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)
    placed = place(tree, abstract)
    assert_same(placed, tree)
    for name, leaf in leaves(placed).items():
        assert leaf.sharding.is_equivalent_to(leaves(abstract)[name].sharding, leaf.ndim), name
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    with pytest.raises(UserError, match="do not fit the config's model: it has no 'decoder/"):
        place({"encoder": tree["encoder"]}, abstract)


def state_of(value, mesh, *, ema=True, adversary=True):
    """A state of two numbers for generator and discriminator each, and its shapes."""
    params = {"w": jnp.full((2,), value)}
    judge = DiscriminatorState(
        {"d": jnp.full((2,), value)}, {"m": jnp.zeros(2)}, jnp.zeros(2), jnp.zeros(())
    )
    state = TrainState(
        jnp.int32(0), params, params if ema else None, {"m": jnp.zeros(2)},
        judge if adversary else None,
    )  # fmt: skip
    state = jax.device_put(state, replicated(mesh))
    describe = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
    return state, jax.tree.map(describe, state)


@pytest.mark.parametrize(
    ("names", "params", "average", "line"),
    [
        (("raw", "ema"), 1, 2, "parameters (raw) and averaged parameters (ema)"),
        (("raw",), 1, 1, "parameters (raw) and averaged parameters (raw)"),
        (("ema",), 2, 2, "parameters (ema) and averaged parameters (ema)"),
        (("raw", "ema", "discriminator"), 1, 2, "(ema) and the discriminator"),
    ],
)
def test_which_weights_go_where(names, params, average, line):
    mesh = make_mesh()
    weights = {"raw": {"w": np.float32([1, 1])}, "ema": {"w": np.float32([2, 2])}}
    weights["discriminator"] = {"d": np.float32([3, 3])}
    weights = {name: weights[name] for name in names}
    state, said = start_from(*state_of(9.0, mesh), weights)
    assert state.params["w"].tolist() == [params] * 2
    assert state.ema["w"].tolist() == [average] * 2
    assert line in said
    judge = 3 if "discriminator" in names else 9
    assert state.adversary.params["d"].tolist() == [judge] * 2
    assert ("the discriminator starts fresh: there is none" in said) == (judge == 9)
    assert state.params["w"].sharding == NamedSharding(mesh, PartitionSpec())


def test_a_discriminator_that_does_not_fit_is_left_out():
    mesh = make_mesh()
    weights = {"raw": {"w": np.float32([1, 1])}, "discriminator": {"d": np.zeros(3, np.float32)}}
    state, said = start_from(*state_of(9.0, mesh), weights)
    assert state.adversary.params["d"].tolist() == [9, 9]
    assert "the discriminator starts fresh: 'd' is float32[3] there and float32[2] here" in said
    state, said = start_from(*state_of(9.0, mesh, ema=False, adversary=False), weights)
    assert (state.ema, state.adversary, said) == (None, None, "parameters (raw)")
