"""Arithmetic coding of bits. Oracles: the bits, their entropy, and float64 logistic functions."""

import hashlib

import numpy as np
import pytest

from bsq_jax.models.prior.entropy_coder import Decoder, Encoder, chance_of_one, probabilities
from bsq_jax.models.prior.token_bits import LARGEST_LOGIT, LOGIT

pytestmark = pytest.mark.smoke


def drawn(count, seed=0):
    random = np.random.default_rng(seed)
    logits = np.clip(random.normal(0, 200, count), -LARGEST_LOGIT, LARGEST_LOGIT).astype(np.int16)
    return (random.random(count) < chance_of_one(logits)).astype(np.uint8), logits


def test_probabilities_are_the_logistic_function_in_16_bits():
    logits = np.arange(-LARGEST_LOGIT, LARGEST_LOGIT + 1)
    wanted = np.clip(np.round(65536 / (1 + np.exp(-logits / LOGIT))), 1, 65535) / 65536
    np.testing.assert_array_equal(probabilities(), wanted)
    np.testing.assert_array_equal(chance_of_one(np.array([0, 64])), wanted[[704, 768]])


def test_the_table_of_every_machine():
    table = (probabilities() * 65536).astype("<u4").tobytes()
    assert hashlib.sha256(table).hexdigest()[:16] == "f0f857da133f56da"


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 50_000])
def test_bits_come_back_and_take_their_entropy(count):
    bits, logits = drawn(count)
    encoder = Encoder()
    for first in range(0, count, 331):
        encoder.write(bits[first : first + 331], logits[first : first + 331])
    data = encoder.result()
    assert len(data) % 4 == 0
    decoder, found, first = Decoder(data), [], 0
    for size in [5, 0, 100, count]:  # in other portions than they were written
        found.append(decoder.read(logits[first : min(first + size, count)]))
        first = min(first + size, count)
    np.testing.assert_array_equal(np.concatenate(found), bits)
    p = chance_of_one(logits)
    entropy = -np.sum(np.log2(np.where(bits, p, 1 - p)))
    assert entropy - 1 <= 8 * len(data) <= entropy * 1.001 + 64


def test_a_wrong_probability_is_noticed_or_changes_bits():
    bits, logits = drawn(5000)
    encoder = Encoder()
    encoder.write(bits, logits)
    wrong = logits.copy()
    wrong[100] += 1
    try:
        found = Decoder(encoder.result()).read(wrong)
    except AssertionError:
        return
    assert (found != bits).any()
