"""Positions. Oracles: sines and rotations written out in float64 numpy; closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.models.position_tables import fit_temporal, interpolate_spatial
from bsq_jax.models.positions import (
    PositionEmbedding,
    check_length,
    check_width,
    frame_positions,
    rotate,
    rotation,
)


def sines(place, width):
    """Vaswani et al. 2017, sines before cosines."""
    angles = [place / 10_000 ** (i / (width // 2)) for i in range(width // 2)]
    return np.concatenate([np.sin(angles), np.cos(angles)])


@pytest.mark.smoke
def test_sines_and_cosines_written_out():
    width, rows, columns, frames = 12, 2, 3, 4
    module = PositionEmbedding("sincos", (rows, columns), frames, jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, frames, rows, columns, width)).astype(np.float32)
    table = frame_positions("sincos", 0, frames, width, 2)
    found = jax.jit(lambda x: module.apply({}, x, table))(x)
    for t in range(frames):
        for row in range(rows):
            for column in range(columns):
                spatial = np.concatenate([sines(row, width // 2), sines(column, width // 2)])
                wanted = x[0, t, row, column] + spatial + sines(t, width)
                np.testing.assert_allclose(found[0, t, row, column], wanted, atol=1e-6)


def turned(x, place, pairs):
    """Rotation of channels as complex numbers, by (time, row, column)."""
    angles = np.concatenate(
        [p / 10_000 ** (np.arange(n) / n) for p, n in zip(place, pairs, strict=True)]
    )
    half = len(angles)
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag])


def rotated(x, grid, first=0):
    """Ours, of ``[time, token, channel]``."""
    table = frame_positions("rotary", first, len(x), x.shape[-1], 1)
    turn = rotation(table, grid, x.shape[-1])
    return np.asarray(rotate(jnp.asarray(x, jnp.float32)[None, :, :, None], turn))[0, :, :, 0]


@pytest.mark.smoke
def test_rotations_written_out():
    x = np.random.default_rng(0).normal(size=(3, 6, 16))
    found = rotated(x, (2, 3), first=5)
    for t in range(3):
        for token in range(6):
            place = (5 + t, *divmod(token, 3))
            wanted = turned(x[t, token], place, (2, 3, 3))
            np.testing.assert_allclose(found[t, token], wanted, atol=2e-6)


def test_rotary_scores_depend_on_distances_alone():
    rng = np.random.default_rng(0)
    query, key = (np.broadcast_to(rng.normal(size=12), (4, 12, 12)) for _ in range(2))
    scores = np.einsum("tnd,smd->tnsm", rotated(query, (3, 4)), rotated(key, (3, 4)))
    scores = scores.reshape(4, 3, 4, 4, 3, 4)
    shifted = scores[1:, 1:, 1:, 1:, 1:, 1:]
    np.testing.assert_allclose(scores[:-1, :-1, :-1, :-1, :-1, :-1], shifted, atol=1e-5)
    assert np.ptp(scores) > 1


@pytest.mark.parametrize("kind", ["learned", "sincos", "rotary"])
def test_a_table_is_part_of_a_longer_one_to_the_bit(kind):
    whole = frame_positions(kind, 0, 50, 24, 2)
    part = frame_positions(kind, 17, 3, 24, 2)
    chex.assert_trees_all_equal(jax.tree.map(lambda rows: rows[17:20], whole), part)


def test_unknown_positions_are_named():
    with pytest.raises(UserError, match=r"polar.*learned, window, sincos, rotary"):
        frame_positions("polar", 0, 1, 8, 2)


def test_learned_positions_are_looked_up():
    module = PositionEmbedding("learned", (2, 2), 5, jnp.float32)
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(n, 4)) for name, n in (("spatial", 4), ("temporal", 5))}
    params = jax.tree.map(np.float32, params)
    table = frame_positions("learned", 3, 2, 4, 1)
    found = module.apply({"params": params}, jnp.zeros((1, 2, 2, 2, 4)), table)
    wanted = params["spatial"].reshape(1, 2, 2, 4) + params["temporal"][3:5, None, None]
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


def test_interpolation_of_a_plane_is_the_plane():
    rows, columns = 8, 6
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    table = (places + 0.5).reshape(-1, 2)
    np.testing.assert_array_equal(
        interpolate_spatial(table, (rows, columns), (rows, columns)), table
    )
    larger = interpolate_spatial(table, (rows, columns), (16, 12)).reshape(16, 12, 2)
    wanted = np.stack(np.meshgrid(np.arange(16), np.arange(12), indexing="ij"), -1)
    inside = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(larger[inside], (wanted[inside] + 0.5) / 2, atol=1e-4)


def test_temporal_tables_of_other_lengths():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(fit_temporal(None, 4, 2), np.zeros((4, 2)))
    np.testing.assert_array_equal(fit_temporal(table, 2, 2), table[:2])
    np.testing.assert_array_equal(fit_temporal(table, 5, 2), table[[0, 1, 2, 2, 2]])


def test_clips_that_are_too_long_and_widths_that_do_not_fit():
    for kind in ("sincos", "rotary"):
        check_length(kind, 1000, 16)
    check_length("learned", 15, 16)
    for arguments, message in (
        (("learned", 16, 16), "a clip of 17 frames: this model has learned positions for 16"),
        (("rotary", 1, 1), "a clip of 2 frames: this model takes 1 frame"),
    ):
        with pytest.raises(UserError, match=message):
            check_length(*arguments)
    check_width("learned", 10, 2)
    for arguments, message in (
        (("rotary", 8, 2), "heads of an even width of at least 6, not 4"),
        (("rotary", 14, 2), "heads of an even width of at least 6, not 7"),
        (("sincos", 10, 1), "a width that 4 divides, not 10"),
    ):
        with pytest.raises(UserError, match=message):
            check_width(*arguments)


class Variants(chex.TestCase):
    """The same numbers with and without jit and on a device. Oracle: the formulas in float64."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_rotations(self):
        x = np.random.default_rng(0).normal(size=(2, 6, 16))
        positions = frame_positions("rotary", 3, 2, 16, 1)

        def turn(x):
            return rotate(x, rotation(positions, (2, 3), 16))

        found = self.variant(turn)(x[None, :, :, None].astype(np.float32))
        chex.assert_shape(found, (1, 2, 6, 1, 16))
        for t, token in np.ndindex(2, 6):
            wanted = turned(x[t, token], (3 + t, *divmod(token, 3)), (2, 3, 3))
            np.testing.assert_allclose(found[0, t, token, 0], wanted, atol=2e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_sines(self):
        module = PositionEmbedding("sincos", (1, 2), 3, jnp.float32)
        positions = frame_positions("sincos", 0, 3, 8, 2)
        found = self.variant(lambda x: module.apply({}, x, positions))(jnp.zeros((1, 3, 1, 2, 8)))
        for t, column in np.ndindex(3, 2):
            wanted = np.concatenate([sines(0, 4), sines(column, 4)]) + sines(t, 8)
            np.testing.assert_allclose(found[0, t, 0, column], wanted, atol=1e-6)
