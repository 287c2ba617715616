"""Tokens as words, and masked language models of them. Oracle: brute force over all codes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
from shapes import masked_lm_shape, sampling_settings

from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.models.factory import make_masked_lm, make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.sampler import Sampler, fill_in
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.quantizers.words import Vocabulary
from bsq_jax.training.tasks.masked_lm import make_masked_lm_task

LEECH = TokenLayout(1, 18, 196_560)
VOCABULARIES = [
    *(Vocabulary(TokenLayout(1, 5, 20), size) for size in (1, 2, 3, 5)),
    *(Vocabulary(TokenLayout(2, 4, 11), size) for size in (2, 4)),
    Vocabulary(TokenLayout(1, 4, 16), 3),
]


def binary(numbers, bits):
    return (np.asarray(numbers)[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)


def every_token(layout):
    stage = binary(np.arange(layout.codes), layout.bits)
    return np.array([np.concatenate(t) for t in itertools.product(stage, repeat=layout.stages)])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_words_are_those_that_occur(vocabulary):
    tokens = every_token(vocabulary.layout)
    words = np.asarray(vocabulary.read(tokens))
    assert vocabulary.counts == tuple(len(set(column)) for column in words.T)
    assert words.max(axis=0).tolist() == [count - 1 for count in vocabulary.counts]
    np.testing.assert_array_equal(vocabulary.write(words), tokens)
    if vocabulary.group_size == vocabulary.layout.bits:  # then they are the numbers of codes
        numbers = itertools.product(range(vocabulary.layout.codes), repeat=len(words[0]))
        np.testing.assert_array_equal(words, list(numbers))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_largest_value_of_a_word_given_the_others(vocabulary):
    """Whatever words are known, those before `place` among them."""
    words = np.asarray(vocabulary.read(every_token(vocabulary.layout)))
    for place in range(words.shape[1]):
        behind = words.shape[1] - place - 1
        for known in itertools.product([False, True], repeat=behind):
            asked = np.array([True] * place + [False] + list(known))
            want: dict[tuple[int, ...], int] = {}
            for row in words:
                key = tuple(row[asked])
                want[key] = max(want.get(key, 0), row[place])
            found = vocabulary.most(jnp.asarray(words * asked), place)
            if found is None:
                assert set(want.values()) == {vocabulary.counts[place] - 1}
            else:
                np.testing.assert_array_equal(found, [want[tuple(row[asked])] for row in words])


def test_words_of_published_codebooks():
    assert Vocabulary(LEECH, 9).counts == (384, 512)
    assert Vocabulary(LEECH, 18).counts == (196_560,)
    assert Vocabulary(TokenLayout(1, 18, 2**18), 9).counts == (512, 512)
    assert Vocabulary(TokenLayout(1, 14, 16_384), 14).counts == (16_384,)
    assert Vocabulary(TokenLayout(3, 12, 4_000), 6).counts == (63, 64) * 3
    with pytest.raises(ValueError, match="words of 4 bits are not in one stage of 6 each"):
        Vocabulary(TokenLayout(2, 6, 64), 4)


# Five codes of three bits, of which the first two are one word and the third another.
FIVE = masked_lm_shape(1, 1, layout=TokenLayout(1, 3, 5), group_size=2)
LOGITS = np.array([0.3, -0.4, 0.9, 0.5, 1.1])  # of three words and of two


@pytest.mark.parametrize("unit", ["token", "group"])
def test_words_are_drawn_from_what_completes_a_code(unit):
    """Chi-square against the distribution, by hand: a last first word leaves one second word."""
    first, second = (np.exp(part) / np.exp(part).sum() for part in np.split(LOGITS, [3]))
    both = first[:, None] * second
    both[2] = first[2], 0.0
    if unit == "group":
        # Half of the time the second word is kept and the first one drawn again, to fit it.
        again = np.stack([first, np.append(first[:2] / first[:2].sum(), 0.0)], axis=1)
        both = (both + both.sum(axis=0) * again) / 2
    samples = 40_000
    steps = 1 if unit == "token" else 2
    sampling = sampling_settings(steps=steps, order="random", unit=unit, schedule="linear")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(samples))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (samples, 1, 5))
    words, masked = jnp.zeros((samples, 1, 2), jnp.int32), jnp.ones((samples, 1), bool)
    run = jax.jit(lambda *arrays: fill_in(lambda _: logits, FIVE, sampling, *arrays)[0])
    found = np.asarray(run(words, masked, keys))[:, 0]
    seen = np.bincount(found @ [2, 1], minlength=6)
    assert seen[5] == 0
    assert scipy.stats.chisquare(seen[:5], samples * both.ravel()[:5]).pvalue > 1e-3


@pytest.mark.parametrize("unit", ["token", "group"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_prefers_what_names_no_code_never_gets_it(unit, temperature):
    layout = TokenLayout(2, 5, 17)  # 0 to 15, and 10000
    shape = masked_lm_shape(4, 4, layout=layout, group_size=1)
    sampling = sampling_settings(steps=4, temperature=temperature, unit=unit, noise=3.0)
    logits = jnp.broadcast_to(jnp.asarray([-1.0, 1.0] * 10), (64, 16, 20))
    words, masked = jnp.zeros((64, 16, 10), jnp.int32), jnp.ones((64, 16), bool)
    run = jax.jit(lambda *arrays: fill_in(lambda _: logits, shape, sampling, *arrays)[0])
    keys = jax.random.split(jax.random.key(0), 64)
    bits = np.asarray(shape.vocabulary.write(run(words, masked, keys)))
    assert layout.names_code(bits).all()
    if temperature:
        assert bits.any(axis=(0, 1)).all()


CASES = {
    "leech": ({"name": "leech"}, 9, (384, 512)),
    "vq": ({"name": "vq", "codes": 300}, 9, (300,)),
    "fsq_stages": ({"name": "fsq", "levels": (4, 5), "stages": 2}, 5, (20, 20)),
}


def configured(quantizer, group_size):
    config = tiny.get_masked_lm("/a/tokenizer", group_size=group_size)
    config.model.bits = 0
    config.quantizer.update(quantizer)
    return config


@pytest.mark.parametrize("case", CASES)
def test_a_step_and_samples(case):
    settings, group_size, counts = CASES[case]
    config = finalize(configured(settings, group_size))
    tokenizer = make_tokenizer(config)
    layout = tokenizer.quantizer.layout
    task = make_masked_lm_task(config, FrozenTokenizer(tokenizer, {}))
    assert task.model.shape.words == counts
    mesh = make_mesh(devices=jax.devices()[:1])
    drawn = np.random.default_rng(0).integers(0, layout.codes, (8, 1, 2, 2, layout.stages))
    bits = binary(drawn, layout.bits).reshape(8, 1, 2, 2, layout.length)
    batch = {"bits": jnp.asarray(bits), "label": jnp.arange(8, dtype=jnp.int32)}
    state, found = jax.jit(task.train_step)(task.init_state(mesh), batch, {})
    guess = sum(map(np.log2, counts)) / layout.length
    assert abs(found["cross_entropy"] - guess) < 0.1
    sampling = sampling_settings(steps=2, unit="group")
    sampler = Sampler(task.model, task.tokenizer, sampling, mesh)
    made = next(iter(sampler(state.params, {}, np.arange(10), pixels=False)))[0]
    assert layout.names_code(made).all()
    assert len(np.unique(made.reshape(-1, layout.length), axis=0)) > 10


def test_the_whole_codebook_is_one_word():
    config = finalize(configured({"name": "leech"}, 18))
    model = make_masked_lm(config)
    shape = model.shape
    words = jnp.zeros((1, 1, shape.tokens, shape.groups), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), words, jnp.zeros(1, jnp.int32))
    params = variables["params"]
    assert params["words0"]["embedding"].value.shape == (196_561, 16)
    assert params["head_out"]["kernel"].value.shape == (16, 196_560)


@pytest.mark.parametrize(
    ("quantizer", "group_size", "said"),
    [
        ({"name": "leech"}, 19, "is 19: choose 1 to 18 for 18 bits"),
        ({"name": "vq", "codes": 300}, 10, "is 10: choose 1 to 9 for 9 bits"),
        (
            {"name": "fsq", "levels": (8, 8), "stages": 3},
            4,
            "is 4: choose 1, 2, 3 or 6 for 6 bits a stage, so that each word is in one stage",
        ),
    ],
)
def test_words_that_do_not_fit(quantizer, group_size, said):
    with pytest.raises(UserError, match=said) as error:
        finalize(configured(quantizer, group_size))
    assert "\n" not in str(error.value)
