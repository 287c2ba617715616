"""Residual quantization.

Oracles: a uniform mid-rise quantizer in float64 numpy, one stage by itself, closed forms.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import bsq_quantizer

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.quantizers import ResidualQuantizer, make_quantizer
from bsq_jax.quantizers.base import flip
from bsq_jax.quantizers.bsq import to_sphere
from bsq_jax.quantizers.factory import KINDS

pytestmark = pytest.mark.smoke

CHANNELS, STAGES = 6, 3
EDGE = 1e-6  # a coordinate as near to a threshold may get either level in float32


def residual(stages=STAGES, **changes):
    return ResidualQuantizer(bsq_quantizer(length=CHANNELS, **changes), stages)


def latents(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, CHANNELS)).astype(np.float32)


def unit(v):
    v = np.asarray(v, np.float64)
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def mid_rise(u, stages):
    """Levels 0 to 2^stages - 1 of steps of equal width over +-2 / sqrt(D), and their middles."""
    half = 2 / np.sqrt(u.shape[-1])
    width = 2 * half / 2**stages
    place = (u + half) / width
    assert np.abs(place - np.rint(place)).min() > EDGE
    level = np.clip(np.ceil(place) - 1, 0, 2**stages - 1).astype(int)  # zero counts as below
    return level, (level + 0.5) * width - half


class Variants(chex.TestCase):
    """The same numbers with and without jit and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_stages_of_bsq_are_a_mid_rise_quantizer_on_the_sphere(self):
        v, quantizer = latents(40, 5), residual()
        out = self.variant(quantizer.__call__)(v)
        level, middle = mid_rise(unit(v), STAGES)
        wanted = [(level >> (STAGES - 1 - stage)) & 1 for stage in range(STAGES)]
        np.testing.assert_array_equal(out.bits, np.concatenate(wanted, axis=-1))
        np.testing.assert_allclose(out.quantized, middle, atol=1e-6)
        chex.assert_type([out.quantized, out.bits, out.loss], [jnp.float32, jnp.uint8, jnp.float32])
        assert out.points == ()

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_first_stages_decode_to_coarser_levels(self):
        v, quantizer = latents(40, 5), residual()
        bits = quantizer(v).bits
        decode, errors = self.variant(lambda bits: quantizer.decode(bits)), []
        for stages, prefix in enumerate(quantizer.prefixes, start=1):
            found = decode(bits[..., :prefix])
            np.testing.assert_allclose(found, mid_rise(unit(v), stages)[1], atol=1e-6)
            errors.append(np.mean((np.asarray(found) - unit(v)) ** 2))
        assert errors[1] < errors[0] / 2
        assert errors[2] < errors[1] / 2
        chex.assert_trees_all_equal(found, quantizer(v).quantized)  # to the bit

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_examples_keep_their_first_stages(self):
        v, quantizer = latents(3, 2, 4), residual()
        kept = np.array([CHANNELS, 2 * CHANNELS, 3 * CHANNELS], np.int32)
        out = self.variant(lambda v, kept: quantizer.encode(v, kept=kept))(v, kept)
        for row, count in enumerate(kept):
            wanted = quantizer.decode(out.bits[row, ..., :count])
            np.testing.assert_allclose(out.quantized[row], wanted, atol=1e-7)
        chex.assert_trees_all_equal(out.bits, quantizer(v).bits)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_later_stages_correct_flipped_bits_of_earlier_ones(self):
        """One flipped sign of the first stage; all later bits of it then point back."""
        v, quantizer = latents(1), residual(stages=6)
        flipped = np.zeros((1, quantizer.bits), np.uint8)
        flipped[0, 2] = 1
        out = self.variant(lambda v, flipped: quantizer.encode(v, flipped=flipped))(v, flipped)
        right = quantizer(v)
        chex.assert_trees_all_close(
            (out.bits, out.losses, out.loss), (right.bits, right.losses, right.loss), rtol=1e-6
        )
        corner, sign = 1 / np.sqrt(CHANNELS), np.sign(v[0, 2])
        wanted = np.array(right.quantized)
        wanted[0, 2] = sign * corner * (-1 + sum(0.5**k for k in range(1, 6)))
        np.testing.assert_allclose(out.quantized, wanted, atol=1e-6)


def test_flips_of_the_last_stage_are_no_one_elses():
    v, quantizer = latents(50), residual()
    flipped = np.random.default_rng(1).integers(0, 2, (50, quantizer.bits), np.uint8)
    flipped[:, : 2 * CHANNELS] = 0
    out = quantizer.encode(jnp.asarray(v), flipped=jnp.asarray(flipped))
    wanted = quantizer.decode(flip(quantizer, out.bits, jnp.asarray(flipped)))
    chex.assert_trees_all_equal(out.quantized, wanted)


def test_gradient_is_that_of_the_points():
    v, w = latents(7), latents(7, seed=1)
    kept = np.full(7, CHANNELS, np.int32)

    def gradient(f):
        return jax.grad(lambda x: jnp.sum(f(x) * w))(jnp.asarray(v))

    quantizer = residual()
    wanted = gradient(to_sphere)
    np.testing.assert_allclose(gradient(lambda x: quantizer(x).quantized), wanted, rtol=1e-6)
    found = gradient(lambda x: quantizer.encode(x, kept=jnp.asarray(kept)).quantized)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_losses_are_those_of_the_stages():
    """Stage k sees what is left over 2^-k; its gradient comes from there alone."""
    v, weights = latents(2, 3, 4), np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    stage = bsq_quantizer(length=CHANNELS, group_size=3, commitment_weight=0.25)
    points = to_sphere(jnp.asarray(v))
    out = ResidualQuantizer(stage, STAGES).encode_points(points, jnp.asarray(weights))
    gradient = jax.grad(
        lambda u: ResidualQuantizer(stage, STAGES).encode_points(u, jnp.asarray(weights)).loss
    )(points)
    left, losses, total, wanted = points, [], 0.0, 0.0
    for k in range(STAGES):
        seen = left * 2.0**k
        losses.append(stage.encode_points(seen, jnp.asarray(weights)))
        wanted += 2.0**k * jax.grad(lambda u: stage.encode_points(u, jnp.asarray(weights)).loss)(
            seen
        )
        left = left - losses[-1].quantized / 2.0**k
        total += losses[-1].loss
    np.testing.assert_allclose(out.loss, total, rtol=1e-5)
    for name in out.losses:
        np.testing.assert_allclose(
            out.losses[name], sum(each.losses[name] for each in losses), rtol=1e-5
        )
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_one_stage_is_the_quantizer_but_for_the_slope():
    v = jnp.asarray(latents(9))
    one, alone = residual(stages=1)(v), bsq_quantizer(length=CHANNELS)(v)
    chex.assert_trees_all_equal(one, alone)


def test_special_points():
    quantizer = residual(commitment_weight=0.25)
    corner = 1 / np.sqrt(CHANNELS)
    # The origin: -1, then 1/2 and 1/4 of the way back.
    out = quantizer(jnp.zeros((1, CHANNELS)))
    np.testing.assert_allclose(out.quantized, -corner * (1 - 0.5 - 0.25), rtol=1e-6)
    # An axis: as far as the levels reach.
    out = quantizer(jnp.eye(CHANNELS))
    np.testing.assert_allclose(np.diag(out.quantized), corner * 1.75, rtol=1e-6)
    v = jnp.zeros((2, CHANNELS)).at[1].set(1.0)
    chex.assert_tree_all_finite(jax.grad(lambda x: quantizer(x).loss)(v))
    out = quantizer(jnp.full((1, CHANNELS), jnp.nan))
    assert np.isnan(out.quantized).all()
    assert np.isnan(out.loss)
    low = jnp.asarray(latents(5), jnp.bfloat16)
    chex.assert_trees_all_equal(quantizer(low), quantizer(low.astype(jnp.float32)))


def config_of(**quantizer):
    config = default_config()
    config.model.bits = 18
    config.quantizer.update(quantizer)
    return config


def test_stages_from_a_config():
    quantizer = make_quantizer(finalize(config_of(stages=2)))
    assert (quantizer.bits, quantizer.channels, quantizer.codes) == (18, 9, 2**18)
    assert quantizer.prefixes == (9, 18)
    assert tuple(quantizer.layout) == (2, 9, 512)
    assert make_quantizer(finalize(config_of())).channels == 18
    with pytest.raises(UserError, match=r"model.bits 18 does not divide into quantizer.stages 4"):
        finalize(config_of(stages=4))


# --- other kinds ---

# Of a stage, where its own settings fix its bits; six bits elsewhere.
SETTINGS = {
    "bsq": {},
    "lfq": {},
    "fsq": {"levels": (3, 5)},
    "vq": {"codes": 11, "channels": 4},
    "leech": {},
}


def of_kind(name, stages):
    config = config_of(name=name, stages=stages, **SETTINGS[name])
    config.model.bits = 6 * stages if name in ("bsq", "lfq") else 0
    return make_quantizer(finalize(config))


def drawn_for(quantizer, *shape):
    return np.random.default_rng(2).normal(size=(*shape, quantizer.channels)).astype(np.float32)


def by_hand(quantizer, variables, points, flipped=None):
    """What each stage sees, its bits as sent and its scaled codes, one stage after the other."""
    alone, left, found = quantizer.stage, points, []
    for k in range(quantizer.stages):
        own = {"params": variables["params"][f"stage{k}"]} if alone.learned else {}
        scale = np.broadcast_to(1.0 if k == 0 else np.asarray(alone.step) ** k, left.shape)
        bits = np.asarray(alone.apply(own, left / scale, method="nearest"))
        if flipped is not None:
            turned = bits ^ flipped[:, k * alone.bits : (k + 1) * alone.bits]
            bits = np.where(alone.names_code(turned)[:, None], turned, bits)
        code = np.asarray(alone.apply(own, bits, method="decode")) * scale
        found.append((left / scale, bits, code))
        left = left - code
    return found


def both(quantizer, v, flipped=None):
    """Variables, what the quantizer makes of latents, and what is made of them by hand."""
    variables = nn.unbox(quantizer.init(jax.random.key(0), v))

    @jax.jit
    def encode(v):
        out = quantizer.apply(variables, v, flipped=flipped, method="encode")
        return out, quantizer.apply(variables, v, method="project")

    out, points = encode(v)
    return variables, out, by_hand(quantizer, variables, np.asarray(points), flipped)


@pytest.mark.parametrize("name", KINDS)
def test_stages_of_every_kind(name):
    quantizer = of_kind(name, 3)
    variables, out, stages = both(quantizer, drawn_for(quantizer, 200))
    assert quantizer.names_code(out.bits).all()
    np.testing.assert_array_equal(out.bits, np.concatenate([bits for _, bits, _ in stages], -1))
    total, errors = 0.0, [np.mean(np.square(stages[0][0]))]
    for prefix, (_, _, code) in zip(quantizer.prefixes, stages, strict=True):
        total = total + code
        found = quantizer.apply(variables, out.bits[:, :prefix], method="decode")
        np.testing.assert_allclose(found, total, atol=1e-6)
        errors.append(np.mean(np.square(stages[0][0] - total)))
    np.testing.assert_allclose(out.quantized, total, atol=1e-6)
    assert (np.diff(errors) < 0).all()
    assert len(out.points) == quantizer.learned
    if quantizer.learned:
        chex.assert_trees_all_close(out.points, tuple(seen for seen, _, _ in stages), atol=1e-5)


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_flipped_stages_name_codes(name):
    quantizer = of_kind(name, 2)
    flipped = np.random.default_rng(3).integers(0, 2, (60, quantizer.bits), np.uint8)
    _, out, stages = both(quantizer, drawn_for(quantizer, 60), flipped)
    sent = np.concatenate([bits for _, bits, _ in stages], axis=-1)
    assert quantizer.names_code(sent).all()
    assert not quantizer.names_code(np.asarray(out.bits) ^ flipped).all()
    np.testing.assert_allclose(out.quantized, sum(code for _, _, code in stages), atol=1e-6)


@pytest.mark.parametrize("levels", [(2, 3, 4, 5), (8, 7)])
def test_stages_of_fsq_are_a_uniform_quantizer(levels):
    quantizer, stages = make_quantizer(finalize(fsq_config(levels))), 2
    v = drawn_for(quantizer, 300)
    points = np.asarray(quantizer.project(jnp.asarray(v)), np.float64)
    count, width = np.asarray(levels, np.float64), np.asarray(levels) // 2
    place = (points * width + count / 2) * count ** (stages - 1)
    sure = np.abs(place - np.rint(place)) > 1e-4
    assert sure.mean() > 0.98
    middle = ((np.floor(place) + 0.5) / count ** (stages - 1) - count / 2) / width
    found = np.asarray(quantizer(jnp.asarray(v)).quantized)
    np.testing.assert_allclose(found[sure], middle[sure], atol=1e-5)


def fsq_config(levels):
    config = config_of(name="fsq", stages=2, levels=levels)
    config.model.bits = 0
    return config


@pytest.mark.parametrize("cosine", [False, True])
def test_each_codebook_learns_from_what_its_own_stage_sees(cosine):
    """The codebook loss of stage k, |code - left|^2, moves codebook k alone."""
    config = config_of(name="vq", stages=3, codes=11, channels=4, cosine=cosine)
    config.model.bits = 0
    quantizer = make_quantizer(finalize(config))
    v = drawn_for(quantizer, 50)
    variables, out, stages = both(quantizer, v)
    assert out.points[0].shape == v.shape
    weights = drawn_for(quantizer, 50)[::-1]

    def loss(params, v):
        out = quantizer.apply({"params": params}, v)
        return out.loss + jnp.mean(jnp.sum(out.quantized * weights, axis=-1))

    found, of_latents = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], v)
    for k, (seen, bits, _) in enumerate(stages):
        number = bits @ 2 ** np.arange(3, -1, -1)

        def alone(codebook, seen=seen, number=number):
            codes = to_sphere(codebook)[number] if cosine else codebook[number]
            return jnp.mean(jnp.sum(jnp.square(codes - seen), axis=-1))

        wanted = jax.grad(alone)(variables["params"][f"stage{k}"]["codebook"])
        np.testing.assert_allclose(found[f"stage{k}"]["codebook"], wanted, atol=1e-5)
    if not cosine:
        wanted = weights / 50
        for k, (seen, _, code) in enumerate(stages):
            scale = quantizer.stage.step**k
            wanted = wanted + 0.25 * 2 / 50 * (seen - code / scale) / scale
        np.testing.assert_allclose(of_latents, wanted, atol=1e-5)
