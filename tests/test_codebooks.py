"""Learned codebooks in training: moving averages, restarts of codes, their state.

Oracles: the formulas of van den Oord et al. (2017) in float64 numpy, the latents themselves, one
device, the big batch.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from bsq_jax import Tokenizer
from bsq_jax.config import finalize, to_json
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_sharding, jit_on, make_mesh, replicated, to_global
from bsq_jax.quantizers import Quantized
from bsq_jax.quantizers.bits import from_index
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.export import save_export
from bsq_jax.training.initial_state import start_from
from bsq_jax.training.optimizer import decays
from bsq_jax.training.state import TrainState, jit_step, next_state
from bsq_jax.training.tasks.codebooks import CodebookTraining
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.workdir import check_resumable

CODES, CHANNELS, STAGES = 8, 3, 2
BATCH, TIME, GRID = 8, 3, (2, 2)
FRAMES = np.array([3, 1, 2, 3, 3, 2, 1, 3], np.int32)
TOKENS = GRID[0] * GRID[1]


def training(**changes) -> CodebookTraining:
    settings = {"cosine": False, "averages": True, "decay": 0.9, "restart": 0.0, "seed": 0}
    paths = tuple(("quantizer", f"stage{k}", "codebook") for k in range(STAGES))
    return CodebookTraining(paths=paths, bits=3, **{**settings, **changes})


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    books = rng.normal(size=(STAGES, CODES, CHANNELS)).astype(np.float32)
    stages = {f"stage{k}": {"codebook": jnp.asarray(book)} for k, book in enumerate(books)}
    return {"quantizer": stages, "kernel": jnp.ones(2)}


def random_batch(seed=0, used=CODES):
    """Codes of tokens ``[stage, batch, time, row, column]``, and their points."""
    rng = np.random.default_rng(seed)
    shape = (STAGES, BATCH, TIME, *GRID)
    codes = rng.integers(0, used, shape)
    return codes, rng.normal(size=(*shape, CHANNELS)).astype(np.float32)


def quantized(codes, points):
    bits = jnp.concatenate([from_index(jnp.asarray(stage), 3) for stage in codes], axis=-1)
    points = tuple(jnp.asarray(stage) for stage in points)
    return Quantized(points[0], bits, {}, jnp.float32(0), points)


def frame_weights(frames):
    return (jnp.arange(TIME)[None] < jnp.reshape(frames, (-1, 1))).astype(jnp.float32)


def step_of(rules, params, states, batch, step, frames=FRAMES, micro_batches=1):
    """A step of the codebooks alone: parameters, states and changes after it."""
    draws = rules.draw(params, jnp.asarray(frames) * TOKENS, jnp.int32(step))

    def statistics(rows, frames):
        made, numbers = rows
        return rules.statistics(params, made, frame_weights(frames), numbers, draws)

    made = quantized(*batch)._replace(loss=None)
    rows = (made, jnp.arange(BATCH))
    found = over_micro_batches(statistics, rows, jnp.asarray(frames), micro_batches)
    changes = rules.change(params, states, found)
    return rules.put(params, changes), tuple(c.state for c in changes), changes


def books(params):
    return [np.asarray(params["quantizer"][f"stage{k}"]["codebook"]) for k in range(STAGES)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class InFloat64:
    """The averages of a codebook, token by token."""

    def __init__(self, codebook, cosine, decay=0.9):
        self.usage = np.full(CODES, 1 / CODES)
        self.sums = codebook.astype(np.float64) / CODES
        self.cosine, self.decay = cosine, decay

    def step(self, codes, points):
        points = points.astype(np.float64)
        points = unit(points) if self.cosine else points
        usage, sums = np.zeros(CODES), np.zeros((CODES, CHANNELS))
        for example, place in [(b, t) for b in range(BATCH) for t in range(FRAMES[b])]:
            here = points[example, place].reshape(-1, CHANNELS)
            for code, point in zip(codes[example, place].ravel(), here, strict=True):
                usage[code] += 1
                sums[code] += point
        total = FRAMES.sum() * TOKENS
        self.usage = self.decay * self.usage + (1 - self.decay) * usage / total
        self.sums = self.decay * self.sums + (1 - self.decay) * sums / total
        smooth = (self.usage + 1e-5 / CODES) / (self.usage.sum() + 1e-5) * self.usage.sum()
        codebook = self.sums / smooth[:, None]
        return unit(codebook) if self.cosine else codebook


@pytest.mark.smoke
@pytest.mark.parametrize("cosine", [False, True])
def test_averages_are_those_of_float64(cosine):
    rules, params = training(cosine=cosine), random_params()
    oracles = [InFloat64(book, cosine) for book in books(params)]
    states = rules.init(params)
    for step in range(4):
        batch = random_batch(step, used=CODES - 1)  # the last code is never used
        params, states, _ = step_of(rules, params, states, batch, step)
        for k, oracle in enumerate(oracles):
            wanted = oracle.step(batch[0][k], batch[1][k])
            np.testing.assert_allclose(books(params)[k], wanted, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(states[k].usage, oracle.usage, rtol=1e-5)
            np.testing.assert_allclose(states[k].sums, oracle.sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["kernel"], 1)


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.smoke
def test_codes_that_are_not_used_become_drawn_points(averages):
    rules, before = training(averages=averages, restart=0.5), random_params()
    batch = random_batch(used=CODES - 3)
    frames = jnp.asarray(FRAMES) * TOKENS
    # Used for long, but for the last codes.
    states = rules.init(before, trained=True)
    faded = jnp.where(jnp.arange(CODES) < CODES - 2, 1.0, 0.1)
    states = tuple(dataclasses.replace(each, usage=each.usage * faded) for each in states)
    params, after, changes = step_of(rules, before, states, batch, 7)
    assert rules.metrics(changes)["codes_restarted"] == 2 * STAGES
    for k, draw in enumerate(rules.draw(before, frames, jnp.int32(7))):
        points = batch[1][k].reshape(BATCH, -1, CHANNELS)[draw.row, draw.place]
        np.testing.assert_array_equal(books(params)[k][-2:], points[-2:])
        np.testing.assert_array_equal(after[k].usage[-2:], np.float32(1 / CODES))
        if averages:
            np.testing.assert_allclose(after[k].sums[-2:], points[-2:] / CODES, rtol=1e-6)
        else:
            assert after[k].sums is None
            stepped = jax.tree.map(lambda leaf: leaf + 1, before)  # of the optimizer
            codes = books(rules.put(stepped, changes))[k]
            np.testing.assert_array_equal(codes[:-2], books(stepped)[k][:-2])
            np.testing.assert_array_equal(codes[-2:], points[-2:])
    again = step_of(rules, params, after, batch, 8)[2]
    assert rules.metrics(again)["codes_restarted"] == 0


def test_the_first_step_of_a_new_run_takes_the_codebook_from_its_latents():
    rules, params = training(decay=0.99, restart=0.1), random_params()
    batch = random_batch()
    after, _, changes = step_of(rules, params, rules.init(params), batch, 0)
    assert rules.metrics(changes)["codes_restarted"] == STAGES * CODES
    for k, book in enumerate(books(after)):
        points = {point.tobytes() for point in batch[1][k].reshape(-1, CHANNELS)}
        assert {code.tobytes() for code in book} <= points
    _, _, changes = step_of(rules, params, rules.init(params, trained=True), batch, 0)
    assert rules.metrics(changes)["codes_restarted"] == 0


def test_draws_are_of_all_real_tokens_and_of_nothing_else():
    rules = training(restart=0.5)
    large = {"quantizer": {f"stage{k}": {"codebook": jnp.zeros((4000, 1))} for k in range(STAGES)}}
    tokens = jnp.asarray(FRAMES) * TOKENS
    drawn = [
        set(zip(draw.row.tolist(), draw.place.tolist(), strict=True))
        for step in (0, 1)
        for draw in rules.draw(large, tokens, jnp.int32(step))
    ]
    real = {(row, place) for row in range(BATCH) for place in range(FRAMES[row] * TOKENS)}
    assert drawn == [real] * 4
    small = [
        np.concatenate(draw) for s in (0, 1) for draw in rules.draw(random_params(), tokens, s)
    ]
    assert len({array.tobytes() for array in small}) == 4


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_the_big_batch(parts):
    rules, params = training(restart=0.95), random_params()
    states = rules.init(params, trained=True)
    batch = random_batch(used=CODES - 2)
    one = step_of(rules, params, states, batch, 3)
    other = step_of(rules, params, states, batch, 3, micro_batches=parts)
    assert 0 < rules.metrics(one[2])["codes_restarted"] < STAGES * CODES
    chex.assert_trees_all_close(other, one, rtol=1e-6, atol=1e-7)


def test_padding_does_not_count():
    rules, params = training(restart=0.95), random_params()
    states = rules.init(params, trained=True)
    codes, points = random_batch()
    padding = (np.arange(TIME)[None] >= FRAMES[:, None])[None, ..., None, None]
    other = np.where(padding, 0, codes), np.where(padding[..., None], np.float32(99), points)
    found = [step_of(rules, params, states, each, 3) for each in ((codes, points), other)]
    chex.assert_trees_all_equal(*found)


@pytest.mark.smoke
def test_the_optimizer_leaves_averages_alone_and_the_average_of_parameters_follows_them():
    rules, params = training(), random_params()
    _, states, changes = step_of(rules, params, rules.init(params), random_batch(), 0)
    optimizer = optax.adamw(0.1, weight_decay=1.0)
    before = TrainState(jnp.int32(0), params, params, optimizer.init(params), codebooks=states)
    amend = functools.partial(rules.put, changes=changes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = next_state(before, zeros, optimizer, 0.9, ema_warmup=False, amend=amend)
    trees = (params, after.params, after.ema)
    for old, new, average, change in zip(*map(books, trees), changes, strict=True):
        np.testing.assert_array_equal(new, change.codes)
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.params["kernel"], 0.9)
    assert after.codebooks is states


def test_a_codebook_that_learns_from_gradients_does_not_decay():
    assert not decays({"quantizer": {"codebook": 0}})["quantizer"]["codebook"]


def test_a_run_from_weights_begins_at_their_codebooks():
    rules, mesh = training(restart=0.1), make_mesh()
    params = random_params()
    state = TrainState(jnp.int32(0), params, None, (), codebooks=rules.init(params))
    state = jax.device_put(state, replicated(mesh))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    assert jax.tree.structure(rules.abstract(abstract.params)) == jax.tree.structure(
        abstract.codebooks
    )
    weights = jax.device_get(random_params(1))
    begun, _ = start_from(state, abstract, {"raw": weights}, rules)
    for book, each in zip(books(weights), begun.codebooks, strict=True):
        np.testing.assert_array_equal(each.usage, np.float32(1 / CODES))
        np.testing.assert_allclose(each.sums / each.usage[:, None], book, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.usefixtures("eight_devices")
def test_statistics_and_draws_are_those_of_one_device(sizes):
    """The codebooks alone, their codes split over fsdp, the batch over data and fsdp."""
    rules, params, batch = training(restart=0.95), random_params(), random_batch(used=CODES - 2)
    states = rules.init(params, trained=True)
    wanted = step_of(rules, params, states, batch, 3)
    mesh = make_mesh(*sizes)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    of_stages = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    run = jit_on(
        mesh,
        functools.partial(step_of, rules),
        in_shardings=(split, split, of_stages, replicated(mesh), batch_sharding(mesh)),
    )
    found = run(params, states, jax.tree.map(jnp.asarray, batch), jnp.int32(3), FRAMES)
    assert rules.metrics(found[2])["codes_restarted"] > 0
    chex.assert_trees_all_close(found, wanted, rtol=1e-6, atol=1e-7)


def config_of(**changes):
    config = tiny.get_config()
    config.model.bits = 0
    settings = {"codes": 20, "channels": 4, "learning": "ema", "decay": 0.8, "restart": 0.5}
    config.quantizer.update(name="vq", **{**settings, **changes})
    return finalize(config)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_the_state_has_averages_of_each_stage_that_lie_as_its_codebook(learning):
    mesh = make_mesh(2, 2, 2)
    state = make_tokenizer_task(config_of(stages=2, learning=learning)).abstract_state(mesh)
    assert len(state.codebooks) == 2
    for k, averages in enumerate(state.codebooks):
        codebook = state.params["quantizer"][f"stage{k}"]["codebook"]
        assert codebook.shape == (20, 4)
        assert averages.usage.shape == (20,)
        assert averages.usage.sharding.spec == PartitionSpec("fsdp")
        assert averages.sums == (codebook if learning == "ema" else None)
        assert codebook.sharding.spec[0] == "fsdp"
    assert make_tokenizer_task(finalize(tiny.get_config())).abstract_state(mesh).codebooks is None


def trained(mesh, accumulate, steps=3):
    """The state after some steps of a tokenizer, and the metrics of each, on the host."""
    task = dataclasses.replace(make_tokenizer_task(config_of()), accumulate=accumulate)
    state = task.init_state(mesh)
    step = jit_step(task, mesh, jax.tree.map(lambda leaf: leaf.sharding, state))
    metrics = []
    for seed in range(steps):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 1, 16, 16, 3), np.uint8)
        state, watched = step(state, to_global({"pixels": pixels}, mesh), {})
        metrics.append(jax.device_get(watched))
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def on_one_device():
    return trained(make_mesh(devices=jax.devices()[:1]), 1)


@pytest.mark.usefixtures("eight_devices")
def test_a_tokenizer_trains_alike_on_a_mesh_and_in_micro_batches(on_one_device):
    (wanted, metrics), (found, of_mesh) = on_one_device, trained(make_mesh(2, 2, 2), 2)
    restarted = [int(each["codes_restarted"]) for each in metrics]
    assert [int(each["codes_restarted"]) for each in of_mesh] == restarted
    assert restarted[0] > 0
    for name in ("codebooks", "params", "ema"):
        pair = getattr(found, name), getattr(wanted, name)
        if name != "codebooks":
            pair = tuple(tree["quantizer"] for tree in pair)
        chex.assert_trees_all_close(*pair, rtol=1e-4, atol=1e-5)


def test_exports_hold_the_codebook(on_one_device, tmp_path):
    state, _ = on_one_device
    weights = {"raw": state.params, "ema": state.ema}
    save_export(tmp_path, config_of(), weights, origin={"step": 3})
    tokenizer = Tokenizer.load(tmp_path, weights="raw")
    codebook = tokenizer.params["quantizer"]["codebook"]
    np.testing.assert_array_equal(codebook, state.params["quantizer"]["codebook"])
    (averages,) = state.codebooks
    np.testing.assert_allclose(averages.sums / averages.usage[:, None], codebook, rtol=1e-3)


def test_a_run_does_not_go_on_with_another_way_of_learning(tmp_path):
    meta = {"config": to_json(config_of())}
    with pytest.raises(UserError, match=r"\(quantizer.learning: ema -> gradient\).*train.init="):
        check_resumable(config_of(learning="gradient"), meta, tmp_path)
    check_resumable(config_of(restart=0.0, decay=0.9), meta, tmp_path)
