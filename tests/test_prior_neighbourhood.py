"""Priors of frames of any size. Oracles: integers token by token, order of rows, whole clips."""

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from shapes import prior_shape
from test_prior_model import Reference, random_params, signs_of

from bsq_jax.coding.neighbourhood_coder import (
    NeighbourhoodCoder,
    room_of_step,
    room_of_wavefront,
)
from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.neighbourhood_prior import NeighbourhoodPrior, offsets_of
from bsq_jax.models.prior.shape import ORDERS, steps_of, tokens_by_step
from bsq_jax.quantizers.layout import TokenLayout

REACH = (1, 2)
SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 10, "window": 2}
SIZES = ((1, 1), (1, 9), (7, 1), (8, 8), (5, 13))  # the last fills up a size class


def shape_of(order, **changes):
    return prior_shape(0, 0, **{"bits": 5, "reach": REACH, "order": order, **SMALL, **changes})


@pytest.fixture(scope="module", params=ORDERS)
def prior(request):
    model = NeighbourhoodPrior(shape_of(request.param))
    params = random_params(model)
    run = jax.jit(lambda signs: model.apply({"params": params}, signs))
    return model, params, run, NeighbourhoodCoder(model, params)


class Recorder(Encoder):
    """Keeps the logits that it was given."""

    def __init__(self):
        super().__init__()
        self.logits = []

    def write(self, bits, logits):
        self.logits.append(np.ravel(logits))
        super().write(bits, logits)


@pytest.mark.smoke
def test_against_integers(prior):
    model, params, run, _ = prior
    signs = signs_of(model.shape, 2, 3, grid=(3, 4))
    ours = np.asarray(run(signs))
    wanted = np.stack([Reference(model.shape, params).logits(clip) for clip in signs])
    chex.assert_trees_all_equal(ours, wanted)
    assert np.unique(ours).size > 20


def test_parameters_do_not_depend_on_the_size(prior):
    model, *_ = prior
    made = [
        model.init(jax.random.key(0), signs_of(model.shape, 1, time, grid=grid))
        for time, grid in ((1, (1, 1)), (3, (4, 2)))
    ]
    chex.assert_trees_all_equal(*made)
    assert made[0]["params"]["block_0"]["near"].shape == (2, 2, 3, 5)
    assert "place" not in made[0]["params"]


def test_no_bit_depends_on_itself_or_a_later_one(prior):
    """In the order of steps; and of another token on the last keys' far side nothing at all."""
    model, _, run, _ = prior
    rows, columns, bits = 3, 4, model.shape.bits
    steps = np.repeat(steps_of(model.shape.order, rows, columns, REACH), bits)
    steps = np.concatenate([steps, steps + steps.max() + 1])
    token = np.repeat(np.arange(2 * rows * columns), bits)
    signs = signs_of(model.shape, 1, 2, grid=(rows, columns))
    before = np.asarray(run(signs)).ravel()
    felt = 0
    for place in range(before.size):
        changed = signs.copy().ravel()
        changed[place] *= -1
        after = np.asarray(run(changed.reshape(signs.shape))).ravel()
        own = (token == token[place]) & (np.arange(before.size) <= place)
        others = (token != token[place]) & (steps <= steps[place])
        np.testing.assert_array_equal(after[own | others], before[own | others])
        felt += int((after != before).any())
    assert felt > before.size / 2


def test_coding_gives_what_the_network_gives_on_whole_clips(prior):
    """To the bit, frame by frame and step by step, for all sizes, with few programs."""
    model, _, run, coder = prior
    for size in SIZES:
        signs = signs_of(model.shape, 1, 3, grid=size)
        bits, wanted = (signs[0] > 0).astype(np.uint8), np.asarray(run(signs))[0]
        for kept in (5, 2):
            encoder, stream = Recorder(), coder.stream(*size, kept)
            for frame in bits:
                stream.encode(frame[..., :kept], encoder)
            order = tokens_by_step(model.shape.steps(*size))
            assert len(order) == stream.steps
            if kept == 5:
                flat = wanted.reshape(3, -1, 5)
                found = np.concatenate(
                    [flat[t, step].T.ravel() for t in range(3) for step in order]
                )
                np.testing.assert_array_equal(np.concatenate(encoder.logits), found)
            decoder, stream = Decoder(encoder.result()), coder.stream(*size, kept)
            back = np.stack([stream.decode(decoder) for _ in bits])
            np.testing.assert_array_equal(back, bits[..., :kept])
    assert coder.programs == 4  # for up to 64 and up to 128 tokens, to encode and to decode


def test_a_large_frame(prior):
    """Many chunks, and sums as large as compilers split them."""
    model, _, run, coder = prior
    signs = signs_of(model.shape, 1, 1, grid=(40, 41))
    encoder = Recorder()
    coder.stream(40, 41, 5).encode((signs[0, 0] > 0).astype(np.uint8), encoder)
    wanted = np.asarray(run(signs))[0, 0].reshape(-1, 5)
    order = tokens_by_step(model.shape.steps(40, 41))
    found = np.concatenate([wanted[step].T.ravel() for step in order])
    np.testing.assert_array_equal(np.concatenate(encoder.logits), found)


def test_more_keys_than_compilers_add_up_at_once():
    """More than 32: sums of products in float32, scaled, were wrong there (XLA on CPU)."""
    model = NeighbourhoodPrior(shape_of("raster", window=3))
    params, signs = random_params(model), signs_of(model.shape, 1, 3, grid=(9, 20))
    coder, encoder = NeighbourhoodCoder(model, params), Recorder()
    assert len(offsets_of(model.shape)) > 32
    stream = coder.stream(9, 20, 5)
    for frame in (signs[0] > 0).astype(np.uint8):
        stream.encode(frame, encoder)
    wanted = np.asarray(jax.jit(model.apply)({"params": params}, signs))[0].reshape(3, -1, 5)
    order = tokens_by_step(model.shape.steps(9, 20))
    found = np.concatenate([frame[step].T.ravel() for frame in wanted for step in order])
    np.testing.assert_array_equal(np.concatenate(encoder.logits), found)


def test_whatever_else_is_in_the_batch(prior):
    model, _, run, _ = prior
    signs = signs_of(model.shape, 3, 2, grid=(4, 5))
    together = np.asarray(run(signs))
    for one, logits in zip(signs, together, strict=True):
        np.testing.assert_array_equal(run(one[None])[0], logits)


NARROW = ((1, 1), (1, 9), (9, 1), (9, 2), (13, 5), (8, 20), (70, 9))
"""Pictures with steps without tokens, with few and many tokens a step, and in two size classes."""


def test_pictures_in_wavefronts():
    """Bits of the network's logits on whole pictures come back, of all sizes; programs are few."""
    model = NeighbourhoodPrior(shape_of("raster", window=1))
    params = random_params(model)
    coder = NeighbourhoodCoder(model, params)
    for size in NARROW:
        signs = signs_of(model.shape, 1, 1, grid=size)
        wanted = np.asarray(jax.jit(model.apply)({"params": params}, signs))[0, 0].reshape(-1, 5)
        bits = (signs[0, 0].reshape(-1, 5) > 0).astype(np.uint8)
        encoder = Encoder()
        for step in tokens_by_step(model.shape.steps(*size)):
            encoder.write(bits[step].T, wanted[step].T)
        decoded = coder.stream(*size, 5).decode(Decoder(encoder.result()))
        np.testing.assert_array_equal(decoded.reshape(-1, 5), bits)
    assert coder.in_wavefronts
    assert coder.programs == 2  # for up to 64 and up to 128 rows


@pytest.mark.parametrize("trained_on", ["pictures", "clips"])
def test_clips_of_priors_that_look_at_one_frame(trained_on):
    """They come back; of a prior of pictures each frame is coded as a picture, to the byte.

    What the token at a place says about the same place in the next frame is learned from clips
    alone, whatever the window: it is nothing at first.
    """
    model = NeighbourhoodPrior(shape_of("raster", window=1))
    params = random_params(model)
    fresh = nn.meta.unbox(model.init(jax.random.key(0), signs_of(model.shape, 1, 1, grid=(2, 2))))
    assert not np.any(fresh["params"]["before"])
    if trained_on == "pictures":
        params["before"] = fresh["params"]["before"]
    coder = NeighbourhoodCoder(model, params)
    for size in ((5, 13), (9, 1)):
        signs = signs_of(model.shape, 1, 3, grid=size)
        wanted = np.asarray(jax.jit(model.apply)({"params": params}, signs))[0]
        bits = (signs[0] > 0).astype(np.uint8)
        encoder, stream = Recorder(), coder.stream(*size, 5)
        found = np.stack([stream.encode(frame, encoder) for frame in bits])
        np.testing.assert_array_equal(found, wanted)
        decoder, stream = Decoder(encoder.result()), coder.stream(*size, 5)
        back = np.stack([stream.decode(decoder) for _ in bits])
        np.testing.assert_array_equal(back, bits)
        alone = np.stack([coder.stream(*size, 5).encode(frame, Encoder()) for frame in bits])
        assert (alone == found).all() == (trained_on == "pictures")


def test_room_for_wavefronts():
    rooms = [room_of_wavefront(most) for most in range(1, 3000)]
    assert all(room > most for most, room in enumerate(rooms, 1))
    assert sorted(set(rooms)) == [8, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def test_codes_of_a_layout_come_back():
    """Patterns that name no code take next to nothing; a picture of codes is coded whole."""
    model = NeighbourhoodPrior(shape_of("raster", layout=TokenLayout(1, 5, 19), window=1))
    coder = NeighbourhoodCoder(model, random_params(model))
    codes = np.random.default_rng(0).integers(0, 19, (6, 7))
    bits = ((codes[..., None] >> np.arange(4, -1, -1)) & 1).astype(np.uint8)
    assert model.shape.layout.names_code(bits).all()
    encoder = Encoder()
    coder.stream(6, 7, 5).encode(bits, encoder)
    decoded = coder.stream(6, 7, 5).decode(Decoder(encoder.result()))
    np.testing.assert_array_equal(decoded, bits)


def test_wavefronts_take_the_order_of_rows():
    """All keys that rows see, and those alone, are earlier; many tokens are taken at once."""
    rows, columns = 6, 9
    steps = steps_of("raster", rows, columns, (2, 2)).reshape(rows, columns)
    offsets = {(0, int(r), int(c)) for r in (-2, -1, 0) for c in range(-2, 3) if (r, c) <= (0, 0)}
    assert {tuple(map(int, o)) for o in offsets_of(shape_of("raster", reach=(2, 2), window=1))} == (
        offsets
    )
    for row, column in np.ndindex(rows, columns):
        for r in range(max(0, row - 2), min(rows, row + 3)):
            for c in range(max(0, column - 2), min(columns, column + 3)):
                earlier = (r, c) < (row, column)
                assert (steps[r, c] < steps[row, column]) == earlier
    assert steps.max() == columns - 1 + 3 * (rows - 1)
    assert steps_of("grids", 50, 7, (2, 2)).max() == 2
    by_step = tokens_by_step(steps.ravel())
    assert [list(step) for step in by_step] == [
        list(np.flatnonzero(steps.ravel() == number)) for number in range(steps.max() + 1)
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_there_is_room_for_every_step(order):
    shape = shape_of(order)
    for slots in (64, 128, 256):
        for rows in range(1, slots + 1):
            columns = slots // rows
            if rows < 40 or columns < 40:
                most = np.bincount(shape.steps(rows, columns)).max()
                assert most <= room_of_step(shape, slots)
