"""The tokenizer's training step.

Oracles: one device against many (SGD: Adam would normalise rounding errors into steps), one big
batch against accumulated small ones, the loss written out from its terms, padded clips against the
same clips without padding.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shapes import bsq_quantizer, tokenizer_shape
from small_task import tokenizer_task

from bsq_jax.config import default_config, finalize
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicated, to_global
from bsq_jax.core.trees import leaves
from bsq_jax.losses import L1, L2, Perceptual, ReconstructionLoss
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training.state import TrainState
from bsq_jax.training.tasks import step_metrics
from bsq_jax.training.tasks.tokenizer import TokenizerTask, make_tokenizer_task

SHAPE = tokenizer_shape(16, 16, 1, 8, bits=6, width=16, layers=2, heads=2, head_hidden=32)
VIDEO = dataclasses.replace(SHAPE, frames=3, layers=1, head_hidden=0)
LENGTHS = (2, 3, 2, 3, 3, 2, 3, 2)  # of clips
ALL_TERMS = {
    "losses": (L1(1.0), L2(0.5)),
    "entropy_weight": optax.linear_schedule(0.3, 0.1, 10),
}


def make_task(shape=SHAPE, **fields) -> TokenizerTask:
    model = TokenizerModel(shape, bsq_quantizer(3, length=shape.bits, commitment_weight=0.25))
    return tokenizer_task(model, **fields)


def photographs(step: int, count: int = 16) -> dict[str, np.ndarray]:
    """Smooth colour ramps with a little noise, uint8 [count, 1, 16, 16, 3]."""
    rng = np.random.default_rng(step)
    corners = rng.uniform(0, 255, (3, count, 1, 1, 1, 3))
    x = np.linspace(0, 1, 16)
    x, y = x[None, None, None, :, None], x[None, None, :, None, None]
    picture = corners[0] * (1 - x) + corners[1] * x * (1 - y) + corners[2] * x * y
    picture = picture + rng.normal(size=picture.shape)
    return {"pixels": np.clip(np.round(picture), 0, 255).astype(np.uint8)}


def clips(step: int) -> dict[str, np.ndarray]:
    """Eight clips, padded with noise to three frames."""
    frames = np.asarray(LENGTHS, np.int32)
    pixels = photographs(step, 24)["pixels"].reshape(8, 3, 16, 16, 3)
    noise = np.random.default_rng(step).integers(0, 256, pixels.shape, np.uint8)
    real = np.arange(3)[None, :] < frames[:, None]
    return {"pixels": np.where(real[:, :, None, None, None], pixels, noise), "frames": frames}


def close(ours, wanted, atol=1e-6, rtol=1e-6):
    chex.assert_trees_all_close(ours, wanted, atol=atol, rtol=rtol)


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


@functools.cache
def first_params(shape=SHAPE):
    """Random parameters, made once: making them is half the time of a test."""
    return jax.device_get(make_task(shape).init_state(one_device()).params)


def start(task: TokenizerTask, mesh):
    """The state at step 0 from `first_params`, laid out on the mesh as the task asks."""
    params = jax.tree.map(np.copy, first_params(task.model.shape))
    ema = jax.tree.map(np.copy, params) if task.ema_decay else None
    state = TrainState(np.int32(0), params, ema, task.optimizer.init(params))
    layout = jax.tree.map(lambda leaf: leaf.sharding, task.abstract_state(mesh))
    return jax.device_put(state, layout)


def compile_step(task: TokenizerTask, mesh):
    """The step as the train loop jits it, traced once only, and a state to start from."""
    state = start(task, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(task.train_step, 1),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step, state


def train(task: TokenizerTask, mesh, steps: int = 3, batch=photographs):
    step, state = compile_step(task, mesh)
    for index in range(steps):
        state, metrics = step(state, to_global(batch(index), mesh), {})
    return jax.device_get((state, metrics))


@functools.cache
def on_one_device():
    return train(make_task(**ALL_TERMS, ema_decay=0.9), one_device())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.usefixtures("eight_devices")
def test_many_devices_do_what_one_does(sizes):
    state, metrics = train(make_task(**ALL_TERMS, ema_decay=0.9), make_mesh(*sizes))
    wanted_state, wanted_metrics = on_one_device()
    close((state.params, state.ema), (wanted_state.params, wanted_state.ema))
    close(metrics, wanted_metrics, rtol=1e-5)
    assert state.step == 3


@pytest.mark.usefixtures("eight_devices")
def test_the_start_is_the_same_on_every_mesh():

    def init(task, mesh):
        # Optimised as users have it (conftest turns it off): the comparison is to the bit.
        options = {"xla_backend_optimization_level": 3}
        return jax.jit(lambda: task.init_state(mesh).params, compiler_options=options)()

    here, there = (init(make_task(), mesh) for mesh in (one_device(), make_mesh(2, 2, 2)))
    chex.assert_trees_all_equal(there, here)
    assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(there))
    other, ours = init(make_task(seed=1), one_device()), here["to_latent"]["kernel"]
    assert abs(np.corrcoef(ours.ravel(), np.ravel(other["to_latent"]["kernel"]))[0, 1]) < 0.5


@pytest.mark.usefixtures("eight_devices")
def test_accumulated_gradients_are_those_of_the_big_batch():
    """Without the entropy, whose codebook term is not a mean over examples."""
    losses = (L1(1.0), L2(0.5))
    state, metrics = train(make_task(losses=losses, accumulate=2), make_mesh(8, 1, 1), 2)
    wanted, wanted_metrics = train(make_task(losses=losses), one_device(), 2)
    close(state.params, wanted.params)
    for name in ("loss", "l1", "l2", "gradient_norm", "token_entropy", "commitment"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, err_msg=name)


def test_the_loss_is_its_weighted_terms_with_the_ramp():
    ramp = optax.linear_schedule(0.3, 0.1, 2000)
    task = make_task(losses=(L1(0.7), L2(0.4)), entropy_weight=ramp)
    params = first_params()
    pixels = to_float(jnp.asarray(photographs(0)["pixels"]))
    gradients = jax.jit(task.gradients)
    for step, factor in [(0, 3), (1000, 2), (2000, 1), (9000, 1)]:
        *_, terms = gradients(params, None, pixels, None, jnp.int32(step), {})
        wanted = 0.7 * terms["l1"] + 0.4 * terms["l2"] + 0.1 * factor * terms["quantizer_loss"]
        np.testing.assert_allclose(terms["loss"], wanted, rtol=1e-5)
        penalty = terms["token_entropy"] - terms["codebook_entropy"] + 0.25 * terms["commitment"]
        np.testing.assert_allclose(terms["quantizer_loss"], penalty, rtol=1e-4)


@pytest.mark.usefixtures("eight_devices")
def test_a_step_in_full():
    """What it reports, what it averages, and that the old state's memory is given up."""
    task = make_task(**ALL_TERMS, ema_decay=0.9)
    step, state = compile_step(task, make_mesh(8, 1, 1))
    before = start(task, one_device())
    after, metrics = step(state, to_global(photographs(0), make_mesh(8, 1, 1)), {})
    kept = [name for name, leaf in leaves(state).items() if not leaf.is_deleted()]
    assert kept == []

    scalars = {"loss", "l1", "l2", "quantizer_loss", "psnr", "gradient_norm", "learning_rate"}
    scalars |= {"token_entropy", "codebook_entropy", "commitment"}
    scalars |= {"bit_entropy", "bit_entropy_min", "group_usage"}
    scalars |= {"usage", "perplexity", "codes_dead"}
    assert set(metrics) == scalars | {"bit_mean"}
    chex.assert_shape([metrics[name] for name in scalars], ())
    chex.assert_shape(metrics["bit_mean"], (6,))
    chex.assert_tree_all_finite(metrics)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1, rtol=1e-6)

    # SGD: the parameters moved by -0.1 times the gradient, whose norm is reported.
    moved = jax.tree.map(lambda a, b: (np.asarray(b) - a) / -0.1, before.params, after.params)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, metrics["gradient_norm"], rtol=1e-4)
    # At step 0 the average keeps a tenth of itself.
    wanted = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * np.asarray(b), before.ema, after.params)
    close(after.ema, wanted)


@pytest.mark.smoke
def test_the_loss_falls_within_thirty_steps():
    config = default_config()
    config.model.update(
        image_size=(16, 16), bits=6, width=16, layers=2, heads=2, head_hidden=32, dtype="float32"
    )
    config.optimizer.update(learning_rate=3e-3, warmup_steps=5)
    config.loss.update(perceptual=0.0, adversarial=0.0)
    config.train.steps = 30
    config.quantizer.group_size = 3
    mesh = one_device()
    step, state = compile_step(make_tokenizer_task(finalize(config)), mesh)
    batch = to_global(photographs(0), mesh)
    history = []
    for _ in range(30):
        state, metrics = step(state, batch, {})
        history.append({name: float(metrics[name]) for name in ("loss", "l1", "psnr")})
    assert history[-1]["l1"] < 0.6 * history[0]["l1"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["psnr"] > history[0]["psnr"] + 2


def test_evaluation_measures_each_example_in_bytes():
    task = make_task()
    params = first_params()
    batch = photographs(0, 4)
    out = jax.jit(task.evaluate_step)(params, batch)
    chex.assert_shape(out["bits"], (4, 1, 2, 2, 6))
    chex.assert_type([out["bits"], out["reconstruction"]], jnp.uint8)
    made = jax.jit(task.reconstruct)(params, to_float(jnp.asarray(batch["pixels"])))
    np.testing.assert_array_equal(out["reconstruction"], to_uint8(made.pixels))
    np.testing.assert_array_equal(out["bits"], made.quantized.bits)


@functools.cache
def gradients_of_clips():
    """The gradients of a video model's task with all terms, on one device."""
    task = make_task(VIDEO, **ALL_TERMS)
    run = jax.jit(task.gradients)

    def gradients(pixels, frames):
        pixels = to_float(jnp.asarray(pixels))
        found, *_, metrics = run(first_params(VIDEO), None, pixels, frames, jnp.int32(0), {})
        layout, tokens = task.model.quantizer.layout, 4 * frames.sum()
        finished = step_metrics.finish(metrics, layout, tokens, 4 * pixels.shape[0] * 3)
        return jax.device_get((found, finished))

    return gradients


@pytest.mark.smoke
def test_a_padded_batch_is_its_clips_without_padding():
    """Clips of each length by themselves; then one mean over all frames and all tokens."""
    batch, model = clips(0), make_task(VIDEO).model
    parts = [
        to_float(jnp.asarray(batch["pixels"][batch["frames"] == count, :count])) for count in (2, 3)
    ]

    def run(params, x, method):
        return model.apply({"params": params}, x, method=method)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def written_out(params):
        latents = [run(params, part, "latents") for part in parts]
        tokens = [model.quantizer(each).quantized for each in latents]
        fakes = [run(params, each, "decode_quantized") for each in tokens]
        pairs = zip(fakes, parts, strict=True)
        errors = jnp.concatenate([jnp.ravel(fake - part) for fake, part in pairs])
        quantized = model.quantizer(jnp.concatenate([each.reshape(-1, 6) for each in latents]))
        terms = {"l1": jnp.abs(errors).mean(), "l2": jnp.square(errors).mean()}
        terms |= {"quantizer_loss": quantized.loss, "bit_mean": quantized.bits.mean(axis=0)}
        loss = terms["l1"] + 0.5 * terms["l2"] + 0.1 * 3 * terms["quantizer_loss"]
        shown = {k: v / np.log(2) for k, v in quantized.losses.items() if k.endswith("_entropy")}
        return loss, terms | {"loss": loss} | quantized.losses | shown  # these are in bits

    (_, wanted), wanted_gradients = written_out(first_params(VIDEO))
    ours, values = gradients_of_clips()(**batch)
    for name, value in wanted.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    close(ours, wanted_gradients, atol=2e-6)


def test_what_padding_holds_has_no_influence():
    batch = clips(0)
    wanted = gradients_of_clips()(**batch)
    other = batch["pixels"].copy()
    other[0, 2] = 255
    found = gradients_of_clips()(other, batch["frames"])
    chex.assert_trees_all_equal(found, wanted)
    other[0, 1] = 255
    found = gradients_of_clips()(other, batch["frames"])
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), found, wanted)))


@pytest.mark.usefixtures("eight_devices")
def test_clips_of_several_lengths_on_many_devices():
    ours, values = train(make_task(VIDEO, **ALL_TERMS), make_mesh(4, 2, 1), 1, clips)
    gradients, wanted = gradients_of_clips()(**clips(0))
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, first_params(VIDEO), gradients)
    close(ours.params, moved)
    for name, value in wanted.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_image_model_sees_clips_frame_by_frame():
    task, params = make_task(), first_params()
    pixels = to_float(jnp.asarray(clips(0)["pixels"]))
    run = jax.jit(task.reconstruct)
    of_clips, of_frames = run(params, pixels), run(params, pixels.reshape(24, 1, 16, 16, 3))
    assert of_clips.pixels.shape == pixels.shape
    bits = of_clips.quantized.bits
    assert bits.shape == (8, 3, 2, 2, 6)
    np.testing.assert_array_equal(bits.reshape(24, 1, 2, 2, 6), of_frames.quantized.bits)
    one_by_one = of_clips.pixels.reshape(of_frames.pixels.shape)
    np.testing.assert_allclose(one_by_one, of_frames.pixels, atol=1e-6)
    np.testing.assert_allclose(of_clips.quantized.loss, of_frames.quantized.loss, rtol=1e-5)


def test_metrics_that_are_no_means_are_of_the_whole_step():
    """PSNR, and what is told of the bits, with micro-batches as without, padding left out."""
    batch = jax.tree.map(jnp.asarray, clips(0))
    batch["pixels"] = batch["pixels"].at[::2].set(batch["pixels"][::2] // 64)  # of other quality
    state = start(make_task(VIDEO), one_device())
    one, two = (
        jax.jit(make_task(VIDEO, accumulate=count).train_step)(state, batch, {})[1]
        for count in (1, 2)
    )
    names = ["psnr", "bit_entropy", "bit_entropy_min", "group_usage", "usage", "perplexity"]
    for name in [*names, "codes_dead", "bit_mean"]:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
    assert one.keys() == two.keys()
    halves = [{k: v[i::2] for k, v in batch.items()} for i in (0, 1)]
    apart = [jax.jit(make_task(VIDEO).train_step)(state, half, {})[1] for half in halves]
    for name in names:
        assert abs(np.mean([part[name] for part in apart]) - one[name]) > 1e-3, name


def test_frozen_networks_are_those_that_the_losses_need():
    perceptual, mesh = Perceptual(0.5, jnp.float32), one_device()
    task = make_task(losses=(L1(1.0), perceptual, dataclasses.replace(perceptual, weight=0.1)))
    loaded, abstract = task.load_frozen(mesh), task.abstract_frozen(mesh)
    assert set(loaded) == {"vgg16"}
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, abstract)
    chex.assert_trees_all_equal(loaded["vgg16"], perceptual.needs.load())
    assert make_task().load_frozen(mesh) == make_task().abstract_frozen(mesh) == {}


def test_a_loss_of_ones_own_is_trained_and_reported():
    """Closed form: the mean of the reconstruction, whose gradient is the same at every pixel."""

    class Mean(ReconstructionLoss):
        name = "mean"

        def __call__(self, original, reconstruction, weights, frozen):
            return jnp.mean(reconstruction)

    task = make_task(losses=(L1(0.0), Mean(0.5)))
    pixels = to_float(jnp.asarray(photographs(0, 4)["pixels"]))
    params = first_params()
    gradient, *_, metrics = jax.jit(task.gradients)(params, None, pixels, None, jnp.int32(0), {})
    made = jax.jit(task.reconstruct)(params, pixels).pixels
    np.testing.assert_allclose(metrics["mean"], made.mean(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], 0.5 * metrics["mean"], rtol=1e-6)
    np.testing.assert_allclose(metrics["l1"], np.abs(pixels - made).mean(), rtol=1e-5)
    # A bias of the last layer is added to the same share of all pixels.
    bias = gradient["decoder"]["head_out"]["bias"]
    np.testing.assert_allclose(bias, 0.5 / bias.size, rtol=1e-4)
