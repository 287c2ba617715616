"""Discriminators. Oracles: golden vectors, numerical derivatives, XLA's convolution, numpy."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from shapes import patchgan_discriminator, stylegan3d_discriminator, stylegan_discriminator

from bsq_jax.config import default_config
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicated
from bsq_jax.core.target import described
from bsq_jax.models.discriminators.filters import average_pool, blur, blur_half, pool_to
from bsq_jax.models.discriminators.minibatch_stddev import minibatch_stddev
from bsq_jax.models.factory import make_discriminator
from bsq_jax.torch_import.discriminators import from_torch_discriminator

KINDS = {
    "stylegan": (stylegan_discriminator(channel_base=32, channel_max=6), (3, 2, 8, 8, 3)),
    "stylegan adaptive": (
        stylegan_discriminator(channel_base=32, channel_max=6, built_for=(16, 16)),
        (3, 2, 14, 11, 3),
    ),
    "stylegan3d": (stylegan3d_discriminator(width=2), (3, 3, 8, 5, 3)),
    "stylegan3d adaptive": (stylegan3d_discriminator(width=2, pooled=True), (3, 3, 8, 5, 3)),
    "patchgan": (patchgan_discriminator(width=4, layers=2), (2, 1, 16, 12, 3)),
}
PLATFORMS = ["gpu", "cpu"]  # XLA's convolutions, and those of `bsq_jax.core.cpu`


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def setup(kind, **attributes):
    """Module, parameters (biases are not zero) and pixels."""
    model, shape = KINDS[kind]
    model = model.copy(**attributes)
    pixels = np.clip(random(shape) * 0.5, -1, 1)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels)["params"])
    params = jax.tree.map(lambda leaf: random(leaf.shape, len(leaf.shape)), shapes)
    return model, params, pixels


def r1(model, params, pixels):
    """Mean over samples of the squared gradient."""
    gradient = jax.grad(lambda pixels: jnp.sum(model.apply({"params": params}, pixels)))(pixels)
    return jnp.sum(gradient**2) / pixels.shape[0]


# --- pieces ---


def test_blurs_and_pools_against_numpy():
    x = random((2, 6, 8, 3))
    filtered = np.zeros((2, 7, 9, 3))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    taps = np.array([1, 3, 3, 1]) / 8
    for i, j in itertools.product(range(4), repeat=2):
        filtered += taps[i] * taps[j] * padded[:, i : i + 7, j : j + 9]
    np.testing.assert_allclose(jax.jit(blur, static_argnums=1)(x, 2), filtered, atol=1e-6)
    np.testing.assert_allclose(jax.jit(blur_half)(x), filtered[:, 1:-1:2, 1:-1:2], atol=1e-6)
    odd = np.pad(x[:, :5, :7], ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(odd, (4, 4), axis=(1, 2))[:, ::2, ::2]
    wanted = np.einsum("bhwcij,i,j->bhwc", windows, taps, taps)
    np.testing.assert_allclose(jax.jit(blur_half)(x[:, :5, :7]), wanted, atol=1e-6)
    np.testing.assert_allclose(
        average_pool(x[:, :5], (2, 1)), (x[:, 0:4:2] + x[:, 1:4:2]) / 2, atol=1e-6
    )
    # The blur's own gradient: the derivative of a linear map is its transpose.
    weights = random((2, 7, 9, 3), 1)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(blur(x, 2) * weights)))(x)
    value, change = jax.jit(lambda x: (jnp.sum(blur(x, 2) * weights), jnp.sum(gradient * x)))(x)
    np.testing.assert_allclose(change, value, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 4), (1, 3), (5, 4), (6, 11), (8, 2), (17, 13)])
def test_pooling_to_a_square_against_a_loop(size):
    x = random((2, 3, *size, 5))
    wanted = np.zeros((2, 3, 4, 4, 5))
    for i, j in itertools.product(range(4), repeat=2):
        rows = slice(int(np.floor(i * size[0] / 4)), int(np.ceil((i + 1) * size[0] / 4)))
        columns = slice(int(np.floor(j * size[1] / 4)), int(np.ceil((j + 1) * size[1] / 4)))
        wanted[:, :, i, j] = x[:, :, rows, columns].astype(np.float64).mean(axis=(2, 3))
    found = jax.jit(pool_to, static_argnums=1)(x, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if size == (4, 4):
        chex.assert_trees_all_equal(found, x)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 8, 9])
def test_minibatch_stddev_against_numpy(batch):
    x = random((batch, 2, 3, 5))
    out = jax.jit(minibatch_stddev, static_argnums=1)(x, 4)
    groups = int(np.ceil(batch / 4))
    np.testing.assert_array_equal(out[..., :-1], x)
    for group in range(groups):
        members = x[group::groups].astype(np.float64)
        wanted = np.sqrt(members.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(out[group::groups, ..., -1], wanted, rtol=1e-5)


# --- against the published code ---


@pytest.mark.parametrize("built_for", [None, (32, 32)])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_golden(golden, platform, built_for):
    wanted = golden("stylegan_d")
    _, _, params = from_torch_discriminator(golden("stylegan_d_state"))
    model = stylegan_discriminator(channel_base=512, built_for=built_for)
    pixels = np.moveaxis(wanted["x"], 1, -1)[:, None]

    @jax.jit
    def run(params, pixels):
        def total(pixels):
            logits, kept = model.apply({"params": params}, pixels, capture_intermediates=True)
            return jnp.sum(logits), (logits, kept["intermediates"])

        gradient, (logits, kept) = jax.grad(total, has_aux=True)(pixels)
        return logits, gradient, kept

    with described(platform):
        logits, gradient, kept = run(params, pixels)
    np.testing.assert_allclose(logits, wanted["logits"], atol=1e-5)
    for side in (32, 16, 8):
        features = np.moveaxis(kept[f"b{side}"]["__call__"][0], -1, 1)
        np.testing.assert_allclose(features, wanted[f"feat_b{side}"], atol=1e-5)
    ours = np.moveaxis(gradient[:, 0], -1, 1)
    np.testing.assert_allclose(ours, wanted["dlogitsum_dx"], atol=1e-7)
    penalty = np.sum(np.asarray(ours, np.float64) ** 2) / 8
    np.testing.assert_allclose(penalty, wanted["r1_double_backprop"], rtol=1e-4)


# --- all kinds ---


def along(params, path, step):
    """Parameters of which one, at `path`, moved in a random direction."""

    def move(where, leaf):
        return leaf + step * random(leaf.shape, 9) if where == path else leaf

    return jax.tree_util.tree_map_with_path(move, params)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_r1_has_the_gradient_that_numerical_derivatives_say(kind, platform):
    model, params, pixels = setup(kind)
    with jax.enable_x64(True), described(platform):
        # The penalty jumps where a leaky ReLU turns, so that only tiny steps tell its slope.
        model = model.copy(dtype=jnp.float64)
        params, pixels = jax.tree.map(np.float64, (params, pixels))
        value_and_grad = jax.jit(jax.value_and_grad(lambda params: r1(model, params, pixels)))
        value, gradient = value_and_grad(params)
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        kernels = [(path, leaf) for path, leaf in leaves if path[-1].key == "kernel"]
        step = 1e-7
        for path, leaf in (kernels[0], kernels[len(kernels) // 2], kernels[-1]):
            ours = np.sum(leaf * random(leaf.shape, 9))
            after, before = (value_and_grad(along(params, path, s))[0] for s in (step, -step))
            numerical = (after - before) / (2 * step)
            assert abs(ours) > 1e-6 * value, path
            np.testing.assert_allclose(ours, numerical, rtol=1e-4, err_msg=str(path))


@pytest.mark.parametrize("kind", ["stylegan", "patchgan"])
def test_platforms_agree(kind):
    results = []
    for platform in PLATFORMS:
        model, params, pixels = setup(kind)

        def loss(params, pixels, model=model):
            return jnp.mean(nn.softplus(model.apply({"params": params}, pixels)))

        with described(platform):
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, pixels))
    ours, wanted = results
    chex.assert_trees_all_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_bfloat16(kind):
    model, params, pixels = setup(kind)
    exact = jax.jit(model.apply)({"params": params}, pixels)
    samples = 1 if kind.startswith("stylegan3d") else pixels.shape[1]
    assert exact.shape[:2] == (pixels.shape[0], samples)
    assert exact.dtype == jnp.float32
    half = model.copy(dtype=jnp.bfloat16)
    with described("gpu"):
        rough, gradient = jax.jit(
            lambda params: (
                half.apply({"params": params}, pixels),
                jax.grad(lambda params: r1(half, params, pixels))(params),
            )
        )(params)
    assert rough.dtype == jnp.float32
    chex.assert_tree_all_finite(gradient)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    # Eight bits of mantissa, through ten layers.
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(np.abs(exact).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("eight_devices")
def test_eight_devices_give_the_logits_of_one(kind):
    model, params, pixels = setup(kind)
    pixels = random((8, *pixels.shape[1:]))
    alone = jax.jit(model.apply)({"params": params}, pixels)
    mesh = make_mesh()
    assert mesh.size == 8
    run = jax.jit(model.apply, in_shardings=(replicated(mesh), batch_sharding(mesh)))
    sharded = run({"params": params}, jax.device_put(pixels, batch_sharding(mesh)))
    np.testing.assert_allclose(sharded, alone, rtol=1e-5, atol=1e-5)
    assert sharded.sharding.mesh.size == 8


def test_statistics_are_those_of_the_global_batch():
    """Each device has one sample, so statistics of its own batch would be constant."""
    mesh = make_mesh()
    x = random((8, 2, 2, 3))
    run = jax.jit(minibatch_stddev, static_argnums=1, out_shardings=batch_sharding(mesh))
    out = run(jax.device_put(x, batch_sharding(mesh)), 4)
    assert out.sharding.spec == PartitionSpec(("data", "fsdp"))
    np.testing.assert_allclose(out[0, 0, 0, -1], np.sqrt(x[::2].var(axis=0)).mean(), rtol=1e-4)


def test_groups_of_a_frame_discriminator_are_frames():
    """Frames are samples: a clip of two frames is a batch of two images."""
    model, params, pixels = setup("stylegan")
    frames = pixels.reshape(-1, 1, *pixels.shape[2:])
    clips = jax.jit(model.apply)({"params": params}, pixels)
    images = jax.jit(model.apply)({"params": params}, frames)
    np.testing.assert_allclose(clips.reshape(-1), images.reshape(-1), atol=1e-5)


def test_equalised_rates_start_at_unit_scale():
    """Features keep a scale of one through the blocks, whatever the number of channels."""
    model = stylegan_discriminator(channel_base=256)
    pixels = random((4, 1, 16, 16, 3))
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), pixels)["params"])
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1 and leaf.size > 1000]
    assert all(abs(np.std(leaf) - 1) < 0.1 for leaf in kernels)
    _, kept = jax.jit(lambda p, x: model.apply(p, x, capture_intermediates=True))(
        {"params": params}, pixels
    )
    for side in (16, 8):
        features = np.asarray(kept["intermediates"][f"b{side}"]["__call__"][0])
        assert 0.3 < np.sqrt(np.mean(features**2)) < 3


# --- sizes and settings ---


def parameters_at(model, shape):
    return nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape, np.float32)))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("stylegan adaptive", [(16, 16), (4, 64), (5, 7), (33, 18)]),
        ("stylegan3d adaptive", [(16, 16), (1, 200), (5, 7), (161, 128)]),
        ("patchgan", [(12, 12), (12, 50), (33, 18)]),
    ],
)
def test_one_set_of_parameters_takes_frames_of_any_size(kind, sizes):
    model, params, pixels = setup(kind)
    clip = pixels.shape[:2]
    for size in sizes:
        frames = np.clip(random((*clip, *size, 3)), -1, 1)
        chex.assert_trees_all_equal_shapes(parameters_at(model, frames.shape)["params"], params)
        logits = jax.jit(model.apply)({"params": params}, frames)
        samples = 1 if "3d" in kind else clip[1]
        chex.assert_shape(logits, (clip[0], samples, *[None] * (logits.ndim - 2)))
        chex.assert_tree_all_finite(logits)


def test_every_pixel_counts_at_sizes_that_do_not_divide():
    """Also the last row and column of odd sides, which halving without a blur would drop."""
    model, params, _ = setup("stylegan adaptive")
    for size in ((13, 15), (11, 9)):
        pixels = np.clip(random((1, 1, *size, 3)) * 0.5, -1, 1)
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(model.apply({"params": params}, x))))(pixels)
        assert (np.abs(gradient).sum(axis=-1) > 0).all()


def config(**settings):
    made = default_config()
    made.model.update(dtype="float32", image_size=settings.pop("image_size", (32, 32)))
    made.model.frames = settings.pop("frames", 1)
    made.data.sizes = settings.pop("sizes", ())
    made.discriminator.update(channel_base=64, width=4, **settings)
    return made


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (config(), (1,)),
        (config(image_size=(48, 32)), (1,)),
        (config(image_size=(24, 20), frames=2), (2,)),
        (config(name="stylegan3d", frames=2, image_size=(24, 16)), (1,)),
        (config(name="stylegan3d", frames=9, image_size=(8, 8)), (1,)),
        (config(name="patchgan"), (1, 2, 2)),
        (config(name="patchgan", layers=2, image_size=(16, 32)), (1, 2, 6)),
        (config(pooling="adaptive", image_size=(50, 36), sizes=("8x60", "31x44")), (1,)),
        (config(name="stylegan3d", pooling="adaptive", frames=2, sizes=("8x8",)), (1,)),
        (config(name="patchgan", layers=2, sizes=("12x60",)), (1, 6, 6)),
    ],
)
def test_factory_and_shapes(made, shape):
    model = make_discriminator(made)
    pixels = jax.ShapeDtypeStruct((2, made.model.frames, *made.model.image_size, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)
    logits = jax.eval_shape(model.apply, variables, pixels)
    assert logits.shape == (2, *shape)
    assert logits.dtype == np.float32


def test_settings_reach_the_networks():
    made = config(channel_max=7, stddev_group=3)
    model = make_discriminator(made)
    assert (model.channel_base, model.channel_max, model.stddev_group) == (64, 7, 3)
    made.model.dtype = "bfloat16"
    assert make_discriminator(made).dtype == jnp.bfloat16
    clips = make_discriminator(config(name="stylegan3d", frames=2, stddev_group=3))
    assert (clips.width, clips.stddev_group) == (4, 3)
    patches = make_discriminator(config(name="patchgan", layers=2))
    assert (patches.width, patches.layers) == (4, 2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config(image_size=(4, 4)), "frames of 4x4 down to 4x4 only"),
        (config(image_size=(50, 50)), "frames of 50x50 down to 25x25 only"),
        (config(image_size=(31, 32)), "down to 31x32 only"),
        (config(name="stylegan3d"), "model.frames is 1"),
        (config(name="patchgan", image_size=(16, 32)), "at least 24 pixels a side, not 16"),
        (
            config(sizes=("32x32", "24x40")),
            "32x32 alone, but data.sizes has 24x40: set discriminator",
        ),
        (
            config(name="stylegan3d", frames=2, sizes=("24x40",)),
            "with pooling=none takes frames of model.image_size 32x32 alone",
        ),
        (config(pooling="adaptive", sizes=("32x32", "4x40")), "it cannot take frames of 4x40"),
        (config(pooling="adaptive", image_size=(6, 9)), "at least 8 pixels a side"),
        (config(name="patchgan", sizes=("24x24", "64x16")), "at least 24 pixels a side, not 16"),
        (config(name="wgan"), "must be one of stylegan, stylegan3d, patchgan"),
    ],
)
def test_mistakes_are_one_line(made, message):
    with pytest.raises(UserError, match=message) as error:
        make_discriminator(made)
    assert "\n" not in str(error.value)
