"""The prior's network in whole numbers. Oracle: the same network in int64 numpy, token by token."""

import functools
import hashlib
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import prior_shape

from bsq_jax.models.prior.integer_arithmetic import (
    divide,
    lowering,
    normalize,
    powers,
    shift,
    weights,
    whole,
)
from bsq_jax.models.prior.shape import ORDERS, steps_of
from bsq_jax.models.prior.tile_prior import (
    TilePrior,
    append_frame,
    begun_frame,
    contexts_of_step,
    empty_past_frames,
    logits_of_frames,
)
from bsq_jax.models.prior.token_bits import LARGEST_LOGIT, TokenBits, bit_logits, cross_entropy
from bsq_jax.quantizers.layout import TokenLayout

pytestmark = pytest.mark.smoke


def shape_of(order, **changes):
    settings = {"width": 24, "layers": 2, "heads": 2, "hidden": 10, "window": 2, "order": order}
    return prior_shape(2, 3, **{"bits": 5, **settings, **changes})


def random_params(model, seed=0):
    """Parameters far larger than fresh ones, so that every limit is reached somewhere."""
    shape = model.shape
    signs = jnp.zeros((1, 1, shape.rows or 1, shape.columns or 1, shape.bits))
    drawn = np.random.default_rng(seed)
    params = model.init(jax.random.key(0), signs)["params"]
    return jax.tree.map(lambda p: drawn.normal(0, 0.6, p.shape).astype(np.float32), params)


def signs_of(shape, batch, time, seed=1, grid=None):
    size = (batch, time, *(grid or (shape.rows, shape.columns)), shape.bits)
    return (2.0 * np.random.default_rng(seed).integers(0, 2, size) - 1).astype(np.float32)


def host_logits(token_bits, contexts, known):
    """The logits that the host has for tokens of these bits, and the bits as it gives them back."""
    logits = []

    def read(levels):
        bit = len(logits)
        logits.append(levels - LARGEST_LOGIT)
        return known[..., bit].ravel()

    found = token_bits.decode(contexts, known.shape[-1], read)
    return np.stack(logits, axis=-1).reshape(known.shape), found


class Reference:
    """The network as a document would say it: Python's integers, one row after the other."""

    def __init__(self, shape, params):
        self.shape = shape
        self.p = params

    def whole(self, x, limit=127):
        return np.round(np.clip(np.float64(x) * 64, -limit, limit)).astype(np.int64)

    def matrix(self, x):
        return self.whole(x, min(127, 2**24 // (127 * x.shape[0])))

    def shift(self, x, fan_in, size, wanted):
        bits = max(0, round(float(np.log2(size * 16 * np.sqrt(fan_in) / wanted))))
        return (2 * x + 2**bits) >> (bits + 1)

    def norm(self, x):
        total = max(int(np.abs(x).sum()), len(x))
        return np.clip((x * 32 * len(x) + total // 2) // total, -127, 127)

    def rows(self, block, x):
        width = self.shape.width
        made = self.shift(self.norm(x) @ self.matrix(block["qkv"]), width, 40, 32)
        return np.clip(made, -127, 127).reshape(3, self.shape.heads, -1)

    def attend(self, block, query, pairs):
        """`pairs`: (key, value, bias of each head) of what is seen, the null first."""
        mixed = []
        for head in range(self.shape.heads):
            channels = self.shape.width // self.shape.heads
            scores = [
                int(self.shift(query[head] @ key[head], channels, 2, 23 / 32)) + int(bias[head])
                for key, _, bias in pairs
            ]
            below = [min(max(scores) - score, 496) for score in scores]
            shares = np.array([((32 - d % 16) << 2) >> (d // 16) for d in below], np.int64)
            values = np.stack([value[head] for _, value, _ in pairs])
            top, total = shares @ values, shares.sum()
            mixed.append((2 * top + total) // (2 * total))
        return np.concatenate(mixed)

    def finish(self, block, x, mixed):
        width = self.shape.width
        x = x + self.shift(mixed @ self.matrix(block["out"]), width, 12, 96)
        hidden = self.shift(self.norm(x) @ self.matrix(block["up"]), width, 40, 32)
        hidden = np.clip(hidden + self.whole(block["up_bias"]), 0, 127)
        x = x + self.shift(hidden @ self.matrix(block["down"]), 4 * width, 23, 96)
        return np.clip(x, -(2**15 - 1), 2**15 - 1)

    def sees(self, token, other, columns, *, knows):
        """Whether a row sees a token of its frame; content rows know themselves."""
        (r, c), (q, d) = divmod(int(token), columns), divmod(int(other), columns)
        if self.shape.order == "raster":
            return (q, d) < (r, c) or (knows and (q, d) == (r, c))
        return self.grid_of(q, d) < self.grid_of(r, c) + knows

    def grid_of(self, row, column):
        return 2 if (row + column) % 2 else row % 2

    def logits(self, clip):
        """``[time, row, column, bit]`` for one clip."""
        shape, p = self.shape, self.p
        time, rows, columns, _ = clip.shape
        signs = clip.reshape(time, rows * columns, -1).astype(np.int64)
        reach = shape.reach if shape.any_size else (shape.rows - 1, shape.columns - 1)
        place = 0 if shape.any_size else self.whole(p["place"])
        before = np.concatenate([np.zeros_like(signs[:1]), signs[:-1]])
        common = before @ self.whole(p["before"]) + place
        content = np.clip(4 * (common + signs @ self.whole(p["embed"])), -32767, 32767)
        query = np.clip(4 * (common + self.whole(p["unknown"])), -32767, 32767)
        for layer in range(shape.layers):
            block = p[f"block_{layer}"]
            made = [[self.rows(block, x) for x in frame] for frame in content]
            null = self.whole(block["null"])
            near = self.whole(block["near"])
            fresh = [np.empty_like(content), np.empty_like(query)]
            for kind, stream in enumerate((content, query)):
                for t in range(time):
                    for token in range(rows * columns):
                        pairs = [(null[0], null[1], np.zeros(shape.heads, int))]
                        for past in range(max(0, t - shape.window + 1), t + 1):
                            for other in range(rows * columns):
                                if past == t and not self.sees(
                                    token, other, columns, knows=kind == 0
                                ):
                                    continue
                                r, c = np.divmod([token, other], columns)
                                down, across = r[0] - r[1], c[0] - c[1]
                                if shape.any_size:  # by where the key lies, seen from the row
                                    down, across = -down, -across
                                if abs(down) > reach[0] or abs(across) > reach[1]:
                                    continue
                                bias = near[:, t - past, down + reach[0], across + reach[1]]
                                pairs.append((*made[past][other][1:], bias))
                        x = stream[t, token]
                        mixed = self.attend(block, self.rows(block, x)[0], pairs)
                        fresh[kind][t, token] = self.finish(block, x, mixed)
            content, query = fresh
        found = np.zeros(signs.shape, np.int64)
        for t in range(time):
            for token in range(rows * columns):
                sums = self.norm(query[t, token]) @ self.matrix(p["context"])
                sums = self.shift(sums, shape.width, 40, 32) + self.whole(p["context_bias"])
                for bit in range(shape.bits):
                    made = np.clip(sums, 0, 127) @ self.whole(p["later"])[bit]
                    made = self.shift(made, shape.hidden, 23, 64) + self.whole(p["logit_bias"])[bit]
                    found[t, token, bit] = np.clip(made, -LARGEST_LOGIT, LARGEST_LOGIT)
                    sums = sums + signs[t, token, bit] * self.whole(p["earlier"])[bit]
        return found.reshape(clip.shape)


@pytest.mark.parametrize("order", ORDERS)
def test_against_integers(order):
    model = TilePrior(shape_of(order))
    params, signs = random_params(model), signs_of(model.shape, 2, 3)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, signs))
    wanted = np.stack([Reference(model.shape, params).logits(clip) for clip in signs])
    chex.assert_shape(ours, (2, 3, 2, 3, 5))
    chex.assert_trees_all_equal(ours, wanted)
    assert np.unique(ours).size > 20


@pytest.mark.parametrize("order", ORDERS)
def test_every_way_gives_the_same(order):
    """With and without jit, in any batch, frame by frame and step by step."""
    shape = shape_of(order, window=3, layout=TokenLayout(1, 5, 32 if order == "grids" else 19))
    model = TilePrior(shape)
    params, signs = random_params(model), signs_of(shape, 4, 4)

    numbers = model.apply({"params": params}, method="numbers")

    def jitted(function):
        return jax.jit(functools.partial(function, shape, numbers))

    frames, advance, begin = map(jitted, (logits_of_frames, contexts_of_step, begun_frame))
    whole_clip = np.asarray(jax.jit(model.apply)({"params": params}, signs))
    np.testing.assert_array_equal(model.apply({"params": params}, signs[1:2]), whole_clip[1:2])
    signs, whole_clip = (x.reshape(4, 4, shape.tokens, shape.bits) for x in (signs, whole_clip))
    cache, bits = empty_past_frames(shape, 4), TokenBits(shape, params)
    cache_of_frames = empty_past_frames(shape, 4)
    order_of_steps = shape.steps(shape.rows, shape.columns)
    for t in range(4):
        logits, cache_of_frames = frames(signs[:, t : t + 1], cache_of_frames)
        np.testing.assert_array_equal(logits[:, 0], whole_clip[:, t])
        current, have = begin(cache), np.zeros(shape.tokens, bool)
        taken = np.array([0])
        for step in range(order_of_steps.max() + 1):
            tokens = np.flatnonzero(order_of_steps == step)
            contexts, current = advance(signs[:, t, taken], taken, tokens, have, current, cache)
            known = (signs[:, t, tokens] > 0).astype(int)
            found, read = host_logits(bits, np.asarray(contexts), known)
            np.testing.assert_array_equal(found, whole_clip[:, t, tokens])
            np.testing.assert_array_equal(read, known)
            have[tokens] = True
            taken = tokens
        _, current = advance(signs[:, t, taken], taken, taken, have, current, cache)
        cache = append_frame(cache, current, signs[:, t])
        chex.assert_trees_all_equal(cache, cache_of_frames, strict=True)


def test_bits_that_must_be_0_have_the_lowest_logit():
    """And so patterns that name no code have next to no probability. Oracle: all patterns."""
    layout = TokenLayout(2, 3, 5)
    shape = shape_of("raster", layout=layout, layers=1)
    free = TilePrior(shape_of("raster", bits=layout.length, layers=1))
    params = random_params(free)
    patterns = np.array(list(itertools.product((0, 1), repeat=layout.length)), np.uint8)
    signs = np.zeros((len(patterns), 1, shape.rows, shape.columns, layout.length), np.float32)
    signs[:, 0, 0, 0] = 2.0 * patterns - 1
    logits = np.asarray(TilePrior(shape).apply({"params": params}, signs))
    chances = np.exp2(-np.sum(cross_entropy(logits[:, 0, 0, 0], signs[:, 0, 0, 0]), axis=-1))
    named = layout.names_code(patterns)
    assert chances[~named].sum() < 1e-3
    np.testing.assert_allclose(chances.sum(), 1, rtol=1e-5)
    unforced = np.asarray(free.apply({"params": params}, signs))
    assert np.all((logits == unforced) | (logits == -LARGEST_LOGIT))
    assert (logits != unforced).any()


def test_numbers_of_every_release():
    """The logits of a fixed network, as all releases of JAX and all machines must give them."""
    model = TilePrior(shape_of("raster"))
    signs = signs_of(model.shape, 2, 3)
    logits = np.asarray(model.apply({"params": random_params(model)}, signs)).astype("<i2")
    assert hashlib.sha256(logits.tobytes()).hexdigest()[:16] == "56a1ca74d414d730"


def test_no_bit_depends_on_itself_or_a_later_one():
    shape = shape_of("raster")
    model = TilePrior(shape)
    params, signs = random_params(model), signs_of(shape, 1, 2)
    run = jax.jit(lambda s: model.apply({"params": params}, s))
    before = np.asarray(run(signs)).reshape(-1)
    for place in range(before.size):
        changed = signs.copy().reshape(-1)
        changed[place] *= -1
        after = np.asarray(run(changed.reshape(signs.shape))).reshape(-1)
        np.testing.assert_array_equal(after[: place + 1], before[: place + 1])
    assert (after == before).all()  # the last bit tells nobody anything
    changed = signs.copy()
    changed[0, 0, 0, 0] *= -1
    assert (np.asarray(run(changed)).reshape(-1) != before).any()


def test_orders():
    steps = steps_of("grids", 8, 8)
    assert [int((steps == step).sum()) for step in range(3)] == [16, 16, 32]
    np.testing.assert_array_equal(steps_of("raster", 2, 2), [0, 1, 2, 3])
    np.testing.assert_array_equal(steps_of("grids", 1, 1), [0])
    np.testing.assert_array_equal(steps_of("grids", 2, 2).reshape(2, 2), [[0, 2], [2, 1]])
    assert 64 / (steps.max() + 1) >= 20


class Arithmetic(chex.TestCase):
    """Compiled, op by op and on a device: the same integers, not only close ones."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_division_is_that_of_integers(self):
        drawn = np.random.default_rng(0)
        top = drawn.integers(-(2**30), 2**30, 200_000)
        bottom = drawn.integers(2**9, 2**24, 200_000)
        exact = bottom * drawn.integers(-60, 60, 200_000)  # quotients where rounding decides
        top = np.concatenate([top, exact, exact - 1])
        bottom = np.concatenate([bottom, bottom, bottom])
        found = self.variant(divide)(jnp.asarray(top, jnp.int32), jnp.asarray(bottom, jnp.int32))
        chex.assert_trees_all_equal(found, (top // bottom).astype(np.int32), strict=True)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_shares_of_scores(self):
        scores = jnp.array([3.0, -20.0, 10.0, -70.0])
        wanted = np.array([((32 - 7) << 2) >> 0, ((32 - 14) << 2) >> 1, 128, 4], np.float32)
        share = self.variant(powers)(scores)
        chex.assert_trees_all_equal(share, wanted, strict=True)
        smooth = 128 * 2 ** ((np.asarray(scores) - 10) / 16)
        chex.assert_trees_all_close(share, smooth, rtol=0.07)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_sums_are_shifted_to_the_nearest(self):
        sums = np.arange(-100, 101)
        found = self.variant(lambda x: shift(x, 3))(jnp.asarray(sums, jnp.float32))
        wanted = (2 * sums + 8) >> 4
        chex.assert_trees_all_equal(found, wanted.astype(np.float32), strict=True)


def test_gradients_are_those_of_the_smooth_functions():
    x = jnp.linspace(-1.5, 1.5, 7)
    np.testing.assert_allclose(jax.grad(lambda x: whole(x).sum())(x), 64.0)
    np.testing.assert_allclose(jax.grad(lambda x: shift(64 * x, 3).sum())(x), 8.0)
    v = jnp.asarray(np.random.default_rng(0).normal(0, 200, 16).round(), jnp.float32)
    found = jax.grad(lambda v: jnp.sum(normalize(v) * jnp.arange(16.0)))(v)
    wanted = jax.grad(lambda v: jnp.sum(512 * v / jnp.sum(jnp.abs(v)) * jnp.arange(16.0)))(v)
    inside = np.abs(np.asarray(normalize(v))) < 127
    assert inside.all()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_sums_stay_where_floats_are_exact():
    for keys in (1, 64, 1024, 1033, 5000, 40_000):
        assert keys * (128 >> lowering(keys)) * 127 <= 2**24
    for inputs in (16, 1024, 4096):
        largest = float(jnp.max(weights(jnp.full((inputs, 1), 9.0))))
        assert inputs * 127 * largest <= 2**24


def test_sums_over_hidden_channels_of_many_tokens():
    """Large enough for every way in which a compiler adds up. Oracle: int64."""
    layout, drawn = TokenLayout(1, 18, 2**18), np.random.default_rng(0)
    sizes = (18, 64), (18, 64), (18,)
    parameters = tuple(drawn.normal(0, 0.6, size).astype(np.float32) for size in sizes)
    earlier, later, bias = (np.round(np.clip(x * 64, -127, 127)).astype(int) for x in parameters)
    contexts = drawn.integers(-100, 200, (6000, 64)).astype(np.float32)
    signs = drawn.choice([-1.0, 1.0], (6000, 18)).astype(np.float32)
    numbers = tuple(map(whole, parameters))
    found = jax.jit(lambda c, s: bit_logits(c, s, numbers, layout))(contexts, signs)
    steps = signs.astype(int)[..., None] * earlier
    hidden = np.clip(contexts.astype(int)[:, None] + np.cumsum(steps, 1) - steps, 0, 127)
    drop = max(0, round(float(np.log2(23 * 16 * 8 / 64))))
    wanted = ((2 * np.sum(hidden * later, -1) + 2**drop) >> (drop + 1)) + bias
    np.testing.assert_array_equal(found, np.clip(wanted, -704, 704))


def test_cost_is_that_of_the_logistic_distribution():
    logits, signs = np.array([64.0, -128.0, 30.0]), np.array([1.0, 1.0, 0.0])
    p = 1 / (1 + np.exp(-logits / 64))
    np.testing.assert_allclose(cross_entropy(logits, signs)[:2], -np.log2(p[:2]), rtol=1e-5)
    assert cross_entropy(logits, signs)[2] == 0
