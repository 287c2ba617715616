"""Sampling. Oracles: all outcomes of a toy enumerated in float64, the schedule, the model."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from shapes import masked_lm_shape, sampling_settings

from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.models.masked_lm.mask_schedule import masked_after
from bsq_jax.models.masked_lm.model import MaskedLm
from bsq_jax.models.masked_lm.sampler import Sampler, fill_in
from bsq_jax.quantizers.bits import to_group_indices

SAMPLES = 40_000


class Toy:
    """A model that is a table: logits for every state of a few words, drawn at random."""

    def __init__(self, shape, seed=0):
        self.shape = shape
        self.words = shape.tokens * shape.groups
        self.base = shape.words[0] + 1
        drawn, states = np.random.default_rng(seed), self.base**self.words
        table = drawn.normal(0, 1.2, (states, shape.tokens, sum(shape.words)))
        self.table = table.astype(np.float32)

    def index(self, words):
        flat = words.reshape(*words.shape[:-2], self.words)
        return flat @ (self.base ** np.arange(self.words))

    def logits(self, words):
        return jnp.asarray(self.table)[self.index(words)]

    def logs(self, state):
        """Log-probabilities of each word of a state, float64 ``[word, value]``."""
        logits = self.table[self.index(np.array(state).reshape(1, self.shape.tokens, -1))[0]]
        logits = logits.astype(np.float64).reshape(self.words, self.shape.words[0])
        return logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))


def exact(toy, sampling, start, units):
    """The distribution over finished states, one unit a step, by going through all outcomes.

    units: the words of each unit, a list of tuples of positions.
    """
    mask = toy.base - 1
    states, count = {tuple(start): 1.0}, sum(start[unit[0]] == mask for unit in units)
    assert sampling.steps == count
    for step in range(count):
        following = {}
        for state, chance in states.items():
            logs = toy.logs(state)
            tempered = logs / sampling.temperature
            tempered -= np.log(np.sum(np.exp(tempered), axis=1, keepdims=True))
            unknown = [unit for unit in units if state[unit[0]] == mask]
            positions = [place for unit in unknown for place in unit]
            for values in itertools.product(range(mask), repeat=len(positions)):
                drawn = dict(zip(positions, values, strict=True))
                likely = np.exp(sum(tempered[place, value] for place, value in drawn.items()))
                sure = np.array([sum(logs[p, drawn[p]] for p in unit) for unit in unknown])
                spread = sampling.noise * (1 - (step + 1) / sampling.steps)
                if sampling.order == "random" or step == count - 1:
                    first = np.full(len(unknown), 1 / len(unknown))
                else:
                    # The largest of a_i + s Gumbel_i is i with a chance of softmax(a / s).
                    first = np.exp((sure - sure.max()) / spread)
                    first /= first.sum()
                for unit, share in zip(unknown, first, strict=True):
                    new = list(state)
                    for place in unit:
                        new[place] = drawn[place]
                    key = tuple(new)
                    following[key] = following.get(key, 0.0) + chance * likely * share
        states = following
    return states


CASES = {
    # Three tokens of one word of two bits; two tokens of two words of one bit.
    "random order": (masked_lm_shape(1, 3, bits=2, group_size=2), "token", {"order": "random"}, 3),
    "confidence": (masked_lm_shape(1, 3, bits=2, group_size=2), "token", {"noise": 1.5}, 3),
    "cool": (
        *(masked_lm_shape(1, 3, bits=2, group_size=2), "token"),
        *({"noise": 2.0, "temperature": 0.7}, 3),
    ),
    "tokens of two groups": (
        masked_lm_shape(1, 3, bits=2, group_size=1),
        "token",
        {"noise": 1.0},
        3,
    ),
    "groups alone": (masked_lm_shape(1, 2, bits=2, group_size=1), "group", {"noise": 1.0}, 4),
    "groups, random order": (
        *(masked_lm_shape(1, 2, bits=2, group_size=1), "group"),
        *({"order": "random"}, 4),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("given", [False, True])
def test_one_word_a_step_has_the_models_distribution(case, given):
    """Chi-square against the enumeration; with a token given, of what is left."""
    shape, unit, settings, steps = CASES[case]
    toy = Toy(shape)
    masked = np.ones((1, shape.tokens), bool)
    words = np.zeros((1, shape.tokens, shape.groups), np.int32)
    if given:
        masked[0, 1], words[0, 1] = False, 1
        steps -= 1 if unit == "token" else shape.groups
    sampling = sampling_settings(steps=steps, unit=unit, **settings)
    start = np.where(masked[0, :, None], toy.base - 1, words[0]).ravel().tolist()
    each = range(toy.words)
    units = [(place,) for place in each]
    if unit == "token":
        groups = shape.groups
        units = [tuple(each[g * groups : (g + 1) * groups]) for g in range(shape.tokens)]
    want = exact(toy, sampling, start, units)
    assert abs(sum(want.values()) - 1) < 1e-9

    repeat = lambda array: jnp.asarray(np.repeat(array, SAMPLES, axis=0))  # noqa: E731
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(SAMPLES))
    run = jax.jit(lambda w, m, k: fill_in(toy.logits, shape, sampling, w, m, k))
    found, counts = run(repeat(words), repeat(masked), keys)
    assert (np.asarray(counts) == np.arange(steps)[::-1, None]).all()
    found = np.asarray(found).reshape(SAMPLES, -1)
    states = list(want)
    codes = {state: number for number, state in enumerate(states)}
    seen = np.bincount([codes[tuple(row)] for row in found.tolist()], minlength=len(states))
    expected = SAMPLES * np.array([want[state] for state in states])
    rare = expected < 5  # chi-square wants at least five in a cell
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if not expected[-1]:
        seen, expected = seen[:-1], expected[:-1]
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-3


def test_the_chi_square_would_notice():
    """The same samples against a distribution that is a little off."""
    shape = masked_lm_shape(1, 3, bits=2, group_size=2)
    toy, sampling = Toy(shape), sampling_settings(steps=3, noise=1.5)
    units, start = [(0,), (1,), (2,)], [4, 4, 4]
    right = exact(toy, sampling, start, units)
    for wrong in (
        sampling_settings(steps=3, order="random"),
        sampling_settings(steps=3, noise=3.0),
    ):
        other = exact(toy, wrong, start, units)
        pairs = np.array([(right[state], other[state]) for state in right]) * SAMPLES
        assert scipy.stats.chisquare(*pairs.T, sum_check=False).pvalue < 1e-6


@pytest.mark.parametrize("unit", ["token", "group"])
@pytest.mark.parametrize(("steps", "schedule"), [(1, "cosine"), (5, "linear"), (9, "cubic")])
def test_counts_follow_the_schedule_and_given_words_stay(unit, steps, schedule):
    shape = masked_lm_shape(4, 4, bits=5, group_size=2)
    drawn = np.random.default_rng(0)
    words = drawn.integers(0, 2, (6, 16, 3)).astype(np.int32)
    masked = drawn.random((6, 16)) < np.linspace(0, 1, 6)[:, None]
    masked[0], masked[5] = False, True
    table = drawn.normal(size=(16, sum(shape.words))).astype(np.float32)
    sampling = sampling_settings(steps=steps, schedule=schedule, unit=unit)
    keys = jax.random.split(jax.random.key(0), 6)
    found, counts = fill_in(
        lambda words: jnp.broadcast_to(jnp.asarray(table), (6, 16, sum(shape.words))),
        *(shape, sampling, jnp.asarray(words), jnp.asarray(masked), keys),
    )
    units = 16 * (1 if unit == "token" else 3)
    total = masked.sum(axis=1) * (units // 16)
    want = masked_after(schedule, steps, units)[:, total]
    np.testing.assert_array_equal(counts, want)
    found = np.asarray(found)
    np.testing.assert_array_equal(found[~masked], words[~masked])
    assert (found < shape.masks).all()  # no mask is left
    assert (found[5] != words[5]).any()


class Likeliest(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_no_temperature_and_no_noise_take_the_likeliest(self):
        shape = masked_lm_shape(1, 3, bits=2, group_size=2)
        toy = Toy(shape)
        sampling = sampling_settings(steps=3, temperature=0.0, noise=0.0)
        start = jnp.zeros((1, 3, 1), jnp.int32)
        keys = jax.random.split(jax.random.key(0), 1)
        fill = self.variant(functools.partial(fill_in, toy.logits, shape, sampling))
        found, _ = fill(start, jnp.ones((1, 3), bool), keys)
        state = [4, 4, 4]
        for _ in range(3):
            logs = toy.logs(state)
            place = max((p for p in range(3) if state[p] == 4), key=lambda p: logs[p].max())
            state[place] = int(np.argmax(logs[place]))
        wanted = np.array(state, np.int32).reshape(1, 3, 1)
        chex.assert_trees_all_equal(found, wanted, strict=True)


# --- with a network ---


def model_of(**changes):
    settings = {"rows": 2, "columns": 2, "bits": 6, "group_size": 3, "width": 16, "layers": 2}
    return MaskedLm(masked_lm_shape(**{**settings, "heads": 2, "classes": 3, **changes}))


def params_of(model, seed=0):
    shape = model.shape
    words = jnp.zeros((1, 1, shape.tokens, shape.groups), jnp.int32)
    params = model.init(jax.random.key(seed), words, jnp.zeros(1, jnp.int32))["params"]
    params = jax.tree.map(
        lambda leaf: leaf.unbox() if hasattr(leaf, "unbox") else leaf,
        params,
        is_leaf=lambda leaf: hasattr(leaf, "unbox"),
    )
    leaves, tree = jax.tree.flatten(params)
    drawn = np.random.default_rng(seed)
    moved = [leaf + drawn.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.device_get(jax.tree.unflatten(tree, moved))


def bits_of(sampler, params, labels, **options):
    made = sampler(params, {}, np.asarray(labels), pixels=False, **options)
    return np.concatenate([bits for bits, _ in made])


@pytest.mark.usefixtures("eight_devices")
def test_samples_depend_on_seed_number_and_class_alone():
    model = model_of()
    params, labels = params_of(model), np.arange(70) % 3
    sampling = sampling_settings(steps=3, guidance=0.5)
    eight = Sampler(model, None, sampling, make_mesh())
    one = Sampler(model, None, sampling, make_mesh(devices=jax.devices()[:1]))
    split = Sampler(model, None, sampling, make_mesh(data=2, fsdp=2, tensor=2))
    assert (one.batch, eight.batch, split.batch) == (32, 256, 128)
    whole = bits_of(eight, params, labels, seed=5)
    chex.assert_shape(whole, (70, 1, 4, 6))
    chex.assert_type(whole, np.uint8)
    np.testing.assert_array_equal(bits_of(one, params, labels, seed=5), whole)
    np.testing.assert_array_equal(bits_of(split, params, labels, seed=5), whole)
    np.testing.assert_array_equal(bits_of(one, params, labels[:7], seed=5), whole[:7])
    # Going on after some, each stays in its row: 32 to 63 are one batch, of which 5 are left out.
    parts = [bits for bits, _ in one(params, {}, labels, pixels=False, seed=5, first=37)]
    assert [len(part) for part in parts] == [27, 6]
    np.testing.assert_array_equal(np.concatenate(parts), whole[37:])
    changed = labels.copy()
    changed[40] = (changed[40] + 1) % 3
    other = bits_of(one, params, changed, seed=5)
    assert [i for i in range(70) if (other[i] != whole[i]).any()] == [40]
    assert (bits_of(one, params, labels, seed=6) != whole).mean() > 0.2
    assert len({row.tobytes() for row in whole}) > 60


def test_guidance_is_the_formula():
    model = model_of()
    params, labels = params_of(model), jnp.array([0, 1, 2])
    mesh = make_mesh(devices=jax.devices()[:1])
    masks = jnp.broadcast_to(jnp.asarray(model.shape.masks), (3, 1, 4, 2))

    def logits(labels):
        return np.asarray(model.apply({"params": params}, masks, labels)[0])

    told, untold = logits(labels), logits(jnp.full(3, -1))
    np.testing.assert_array_equal(untold, logits(jnp.full(3, 3)))  # the number after the classes
    assert np.abs(told - untold).max() > 0.1
    for weight in (0.0, 2.5):
        sampling = sampling_settings(steps=1, temperature=0.0, guidance=weight)
        bits = bits_of(Sampler(model, None, sampling, mesh), params, labels)
        words = np.asarray(to_group_indices(bits[:, 0], 3))
        want = (told + weight * (told - untold)).reshape(3, 4, 2, 8)
        np.testing.assert_array_equal(words, np.argmax(want, axis=-1))


def test_frames_are_made_in_order_given_those_before():
    """With the likeliest words in one step each frame is the arg max given the frames before it."""
    model = model_of(frames=3, classes=0)
    params = params_of(model)
    sampling = sampling_settings(steps=1, temperature=0.0)
    sampler = Sampler(model, None, sampling, make_mesh(devices=jax.devices()[:1]))
    bits = bits_of(sampler, params, [-1, -1], frames=5)
    chex.assert_shape(bits, (2, 5, 4, 6))
    words = np.asarray(to_group_indices(bits, 3))
    for frame in range(5):
        first = max(0, frame - 2)  # it looks at three frames, its own included
        shown = words[:, first : frame + 1].copy()
        shown[:, -1] = model.shape.masks
        logits = np.asarray(model.apply({"params": params}, shown, jnp.full(2, -1))[0])
        want = np.argmax(logits.reshape(2, 4, 2, 8), axis=-1)
        np.testing.assert_array_equal(words[:, frame], want, err_msg=str(frame))


def test_given_tokens_stay_and_only_earlier_frames_count():
    model = model_of(frames=2, classes=0)
    params = replicate(params_of(model), make_mesh())
    sampler = Sampler(model, None, sampling_settings(steps=2), make_mesh())
    drawn = np.random.default_rng(0)
    given = drawn.integers(0, 2, (3, 2, 4, 6), np.uint8)
    keep = drawn.random((3, 2, 4)) < 0.5
    found = bits_of(sampler, params, [-1] * 3, frames=2, given=given, keep=keep)
    np.testing.assert_array_equal(found[keep], given[keep])
    assert (found[~keep] != given[~keep]).any()
    other = given.copy()
    other[:, 1] ^= 1  # of the second frame
    again = bits_of(sampler, params, [-1] * 3, frames=2, given=other, keep=keep)
    np.testing.assert_array_equal(again[:, 0], found[:, 0])
