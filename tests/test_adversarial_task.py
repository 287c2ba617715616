"""One training step of a tokenizer against a discriminator.

Oracles: the losses written out and differentiated by `jax.grad`, each with a forward pass of its
own; one device against many; a run without a discriminator; clips without their padding.
"""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shapes import bsq_quantizer, stylegan_discriminator, tokenizer_shape
from small_task import adversarial_training, tokenizer_task

from bsq_jax import losses
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicated, to_global
from bsq_jax.losses import L1, L2
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training.state import DiscriminatorState

SHAPE = tokenizer_shape(16, 16, 1, 8, bits=6, width=16, layers=1, heads=2, head_hidden=0)
LOSSES = (L1(1.0), L2(0.5))
RAMP = optax.linear_schedule(0.3, 0.1, 10)
RATE = 0.05
DTYPES = (jnp.float32, jnp.bfloat16)


class Smooth(nn.Module):
    """A small discriminator without statistics over the batch, as curved as R1 needs."""

    @nn.compact
    def __call__(self, pixels):
        x = nn.Conv(4, (1, 4, 4), (1, 4, 4))(pixels)
        x = jnp.tanh(x)
        return nn.Dense(1)(x.mean((2, 3)))  # [batch, time, 1]


def make_task(
    losses=LOSSES,
    entropy_weight=RAMP,
    accumulate=1,
    ema=0.0,
    model_class=TokenizerModel,
    dtype=jnp.float32,
    shape=SHAPE,
    **rules,
):
    rules = {"discriminator": Smooth(), "r1_every": 2, "weight": 0.3, **rules}
    return tokenizer_task(
        model_class(shape, bsq_quantizer(3, length=shape.bits), dtype),
        optimizer=optax.sgd(RATE),
        losses=losses,
        entropy_weight=entropy_weight,
        adversarial=adversarial_training(optimizer=optax.sgd(RATE), **rules),
        ema_decay=ema,
        accumulate=accumulate,
    )


def batch(index: int, count: int = 16) -> dict[str, np.ndarray]:
    """Smooth ramps of colour, uint8 [count, 1, 16, 16, 3]."""
    rng = np.random.default_rng(index)
    a, b = rng.uniform(0, 255, (2, count, 1, 1, 1, 3))
    x = np.linspace(0, 1, 16)[:, None, None] * np.linspace(0.5, 1, 16)[:, None]
    return {"pixels": np.round(a * x + b * (1 - x)).astype(np.uint8)}


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


@functools.cache
def first_state(discriminator):
    """Random parameters, made once for each discriminator: making them is half of a test."""
    return jax.device_get(make_task(discriminator=discriminator).init_state(one_device()))


def start(task, mesh):
    """The state at step 0, laid out on the mesh as the task asks."""
    state = first_state(task.adversarial.discriminator if task.adversarial else Smooth())
    ema = jax.tree.map(np.copy, state.params) if task.ema_decay else None
    state = state.replace(ema=ema, adversary=state.adversary if task.adversarial else None)
    layout = jax.tree.map(lambda leaf: leaf.sharding, task.abstract_state(mesh))
    return jax.device_put(jax.tree.map(np.copy, state), layout)


def compile_step(task, mesh):
    state = start(task, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    chex.clear_trace_counter()
    step = jax.jit(
        # R1 and the start of the discriminator trace nothing anew.
        chex.assert_max_traces(task.train_step, 1),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step, state


def train(task, mesh, steps):
    """States after each step (the first is the start) and metrics of each, on the host."""
    step, state = compile_step(task, mesh)
    frozen = task.load_frozen(mesh)
    states, values = [jax.device_get(state)], []
    for index in range(steps):
        state, metrics = step(state, to_global(batch(index), mesh), frozen)
        chex.assert_tree_all_finite((state, metrics))
        states.append(jax.device_get(state))
        values.append(jax.device_get(metrics))
    return states, values


def close(ours, wanted, atol=2e-6):
    chex.assert_trees_all_close(ours, wanted, atol=atol, rtol=1e-4)


def written_out(task, step, state, pixels):
    """The parameters of both networks after one step, from losses written out one by one."""
    rules = task.adversarial
    generator, discriminator = state.params, state.adversary.params

    def logits(params, x):
        return rules.discriminator.apply({"params": params}, x)

    def terms(params):
        out = task.model.apply({"params": params}, pixels)
        rec = jnp.abs(pixels - out.pixels).mean() + 0.5 * jnp.square(pixels - out.pixels).mean()
        adversarial = losses.generator_loss(rules.kind, logits(discriminator, out.pixels))
        return rec, adversarial, out.quantized.loss, out.pixels

    def last(index):
        return jax.grad(lambda p: terms(p)[index])(generator)["decoder"]["head_out"]["kernel"]

    weight = rules.weight
    if rules.adaptive:
        a, b = last(0), last(1)
        weight *= jnp.sqrt((a**2).sum()) / (jnp.sqrt((b**2).sum()) + 1e-4)

    def generator_loss(params):
        rec, adversarial, entropy, _ = terms(params)
        ramp = 0.1 * (3 - 2 * min(step / 10, 1))
        return rec + weight * adversarial + ramp * entropy

    fake = terms(generator)[3]

    def discriminator_loss(params):
        real_logits, fake_logits = logits(params, pixels), logits(params, fake)
        loss = losses.discriminator_loss(rules.kind, real_logits, fake_logits)
        anchors = state.adversary.anchors
        loss += rules.lecam * losses.lecam(real_logits, fake_logits, anchors)
        if step % rules.r1_every == 0:
            gradient = jax.grad(lambda x: logits(params, x).sum())(pixels)
            loss += 0.5 * rules.r1 * rules.r1_every * (gradient**2).sum() / len(pixels)
        return loss

    moved = [
        jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params))
        for params, loss in ((generator, generator_loss), (discriminator, discriminator_loss))
    ]
    return moved, weight


@pytest.mark.parametrize(
    "rules",
    [
        {"r1": 10.0},
        {"kind": "hinge", "adaptive": True, "lecam": 0.5, "lecam_decay": 0.5},
    ],
    ids=["non_saturating", "hinge_adaptive_lecam"],
)
def test_a_step_is_what_the_written_out_losses_give(rules):
    task = make_task(**rules)
    states, values = train(task, one_device(), 2)
    expected = jax.jit(written_out, static_argnums=(0, 1))
    for index in (0, 1):  # with R1 and without
        pixels = to_float(jnp.asarray(batch(index)["pixels"]))
        moved, weight = expected(task, index, states[index], pixels)
        after = states[index + 1]
        close((after.params, after.adversary.params), tuple(moved))
        if task.adversarial.adaptive:
            np.testing.assert_allclose(values[index]["adversarial_weight"], weight, rtol=1e-4)
    assert values[0]["r1"] > 0
    assert values[1]["r1"] == values[0]["r1"]  # the last one taken
    logits = [values[0]["logits_real"], values[0]["logits_fake"]]
    decay = task.adversarial.lecam_decay
    np.testing.assert_allclose(
        states[1].adversary.anchors, (1 - decay) * np.asarray(logits), rtol=1e-5
    )


def test_one_forward_pass_of_the_generator():
    traced = []

    class Counted(TokenizerModel):
        def decode_quantized(self, *arguments):
            traced.append(1)
            return super().decode_quantized(*arguments)

    task = make_task(adaptive=True, model_class=Counted)
    state = task.abstract_state(one_device())
    del traced[:]
    jax.eval_shape(task.train_step, state, batch(0), {})
    assert len(traced) == 1


def test_before_its_start_the_discriminator_is_not_trained():
    late = make_task(start=2, ema=0.9, adaptive=True)
    states, values = train(late, one_device(), 3)
    alone = dataclasses.replace(late, adversarial=None)
    wanted, _ = train(alone, one_device(), 2)
    close((states[2].params, states[2].ema), (wanted[2].params, wanted[2].ema))
    chex.assert_trees_all_equal(states[2].adversary, states[0].adversary)
    assert [float(v["adversarial"]) for v in values[:2]] == [0, 0]
    assert [float(v["adversarial_weight"]) > 0 for v in values] == [False, False, True]
    assert values[2]["adversarial"] != 0
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), states[3].adversary.params, states[2].adversary.params
    )
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.usefixtures("eight_devices")
def test_accumulated_micro_batches_are_the_big_batch():
    """Without the entropy, whose codebook term is not a mean over examples."""
    none = optax.constant_schedule(0.0)
    split = make_task(entropy_weight=none, accumulate=2)
    states, values = train(split, make_mesh(8, 1, 1), 2)
    wanted, wanted_values = train(make_task(entropy_weight=none), one_device(), 2)
    close(
        (states[2].params, states[2].adversary.params),
        (wanted[2].params, wanted[2].adversary.params),
    )
    for name in ("adversarial", "discriminator", "r1", "discriminator_gradient_norm"):
        np.testing.assert_allclose(values[1][name], wanted_values[1][name], rtol=1e-4)


@functools.cache
def with_stylegan(sizes):
    """Two steps with a discriminator that looks at statistics over the batch."""
    mesh = make_mesh(*sizes) if sizes else one_device()
    discriminator = stylegan_discriminator(channel_base=32, channel_max=4)
    states, values = train(make_task(discriminator=discriminator, r1=1.0), mesh, 2)
    return states[2], values


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.usefixtures("eight_devices")
def test_batch_statistics_are_those_of_the_global_batch(sizes):
    """Minibatch-stddev and codebook entropy, on many devices as on one."""
    state, values = with_stylegan(sizes)
    wanted, wanted_values = with_stylegan(())
    close((state.params, state.adversary), (wanted.params, wanted.adversary), atol=5e-6)
    for name in ("logits_fake", "discriminator", "codebook_entropy", "r1"):
        np.testing.assert_allclose(values[1][name], wanted_values[1][name], rtol=1e-4)


def test_a_step_in_bfloat16_is_near_the_one_in_float32():
    states, values = zip(*(train(make_task(dtype=d), one_device(), 1) for d in DTYPES), strict=True)
    for name in ("loss", "l1", "adversarial", "discriminator", "r1"):
        np.testing.assert_allclose(values[1][0][name], values[0][0][name], rtol=0.05, atol=0.01)
    chex.assert_trees_all_equal_shapes_and_dtypes(states[1][1], states[0][1])
    close(states[1][1].adversary.params, states[0][1].adversary.params, atol=0.05)


class OfClips(nn.Module):
    """A small discriminator of clips, for which the order of frames counts."""

    @nn.compact
    def __call__(self, pixels):
        x = jnp.tanh(nn.Conv(4, (1, 4, 4), (1, 4, 4))(pixels)).mean((2, 3))
        return nn.Dense(1)(x.reshape(len(x), -1))


def trained_on(pixels, discriminator, **changes):
    """How a discriminator of such pixels is trained, and its state."""
    training = adversarial_training(discriminator, kind="hinge", lecam=0.5, r1_every=1, **changes)
    params = discriminator.init(jax.random.key(0), pixels)["params"]
    return training, DiscriminatorState(params, None, jnp.asarray([0.1, -0.1]), jnp.float32(0))


def test_padding_has_no_logits():
    """As samples of their own the real frames give the same, R1 included."""
    rng = np.random.default_rng(0)
    real, fake = jnp.asarray(rng.uniform(-1, 1, (2, 3, 4, 8, 8, 3)), jnp.float32)
    kept = np.arange(4)[None, :] < np.array([[1], [4], [3]])
    training, state = trained_on(real, Smooth())
    run = jax.jit(training.gradients)
    ours = run(state, real, fake, jnp.int32(0), jnp.asarray(kept, jnp.float32))
    wanted = run(state, real[kept][:, None], fake[kept][:, None], jnp.int32(0))
    close((ours.discriminator, ours.metrics), (wanted.discriminator, wanted.metrics))
    close(ours.pixels[kept], wanted.pixels[:, 0])
    assert not np.asarray(ours.pixels)[~kept].any()
    assert ours.metrics["r1"] > 0


class OfPatches(nn.Module):
    """A logit for each patch, which looks at nothing else."""

    @nn.compact
    def __call__(self, pixels):
        x = jnp.tanh(nn.Conv(4, (1, 4, 4), (1, 4, 4))(pixels))
        return nn.Dense(1)(x)[..., 0]


def test_a_discriminator_of_patches_weighs_all_sizes_alike():
    """A frame beside and below itself has the losses, penalty and gradient of the frame."""
    rng = np.random.default_rng(0)
    real, fake = jnp.asarray(rng.uniform(-1, 1, (2, 3, 1, 8, 8, 3)), jnp.float32)
    training, state = trained_on(real, OfPatches(), patches=4)
    run, step = jax.jit(training.gradients), jnp.int32(0)
    wanted = run(state, real, fake, step)
    large = [jnp.tile(x, (1, 1, 2, 3, 1)) for x in (real, fake)]
    ours = run(state, *large, step)
    assert wanted.metrics["r1"] > 0
    close((ours.discriminator, ours.metrics), (wanted.discriminator, wanted.metrics))
    close(ours.pixels * 6, jnp.tile(wanted.pixels, (1, 1, 2, 3, 1)))


def test_a_discriminator_of_clips_sees_them_held_at_their_last_frame():
    rng = np.random.default_rng(0)
    real, fake = jnp.asarray(rng.uniform(-1, 1, (2, 3, 2, 8, 8, 3)), jnp.float32)
    places = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])  # of 2, 1 and 2 real frames
    whole = [jnp.stack([x[i, places[i]] for i in range(3)]) for x in (real, fake)]
    training, state = trained_on(whole[0], OfClips(), clip_frames=4)
    run, step = jax.jit(training.gradients), jnp.int32(0)
    ours = run(state, real, fake, step, jnp.asarray([[1.0, 1], [1, 0], [1, 1]]))
    wanted = run(state, *whole, step)
    close((ours.discriminator, ours.metrics), (wanted.discriminator, wanted.metrics))
    pixel_gradient = np.zeros(real.shape)  # a frame gets what all its repetitions get
    for i in range(3):
        np.add.at(pixel_gradient[i], places[i], np.asarray(wanted.pixels[i]))
    close(ours.pixels, pixel_gradient)
    with pytest.raises(UserError, match=r"clips of 4 frames, but the data have 5") as caught:
        run(state, *(jnp.zeros((3, 5, 8, 8, 3)),) * 2, step)
    assert "\n" not in str(caught.value)


def test_what_padding_holds_has_no_influence_on_statistics_over_the_batch():
    shape = dataclasses.replace(SHAPE, frames=2)
    discriminator = stylegan_discriminator(channel_base=32, channel_max=4)
    task = make_task(shape=shape, discriminator=discriminator, r1=0.0)
    state = task.init_state(one_device())
    pixels = jnp.asarray(batch(0, 8)["pixels"]).reshape(4, 2, 16, 16, 3)
    run = jax.jit(
        lambda pixels, frames: task.gradients(
            state.params, state.adversary, to_float(pixels), frames, jnp.int32(0), {}
        )
    )
    frames = jnp.asarray([2, 1, 2, 2], jnp.int32)
    other = pixels.at[1, 1].set(255)
    chex.assert_trees_all_equal(run(other, frames), run(pixels, frames))
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), run(other, frames.at[1].set(2)), run(pixels, frames)
    )
    assert all(jax.tree.leaves(changed[1]))


def test_micro_batches_of_clips_are_the_big_batch():
    """A mean over clips beside means over frames; lengths differ between micro-batches."""
    shape = dataclasses.replace(SHAPE, frames=4)
    rules = {"discriminator": OfClips(), "clip_frames": 4, "lecam": 0.5, "r1_every": 1}
    tasks = [
        make_task(
            entropy_weight=optax.constant_schedule(0.0), accumulate=count, shape=shape, **rules
        )
        for count in (1, 2)
    ]
    state = tasks[0].init_state(one_device())
    pixels = jnp.asarray(batch(0, 16)["pixels"]).reshape(4, 4, 16, 16, 3)
    data = {"pixels": pixels, "frames": jnp.asarray([4, 1, 3, 1], jnp.int32)}

    # Rows 0 and 2 are the one micro-batch, 1 and 3 the other: 7 and 2 of 9 frames.
    (one, wanted), (two, values) = (jax.jit(task.train_step)(state, data, {}) for task in tasks)
    close((two.params, two.adversary), (one.params, one.adversary))
    means = wanted.keys() - {"codebook_entropy", "quantizer_loss"}  # the codebook's is no mean
    close({name: values[name] for name in means}, {name: wanted[name] for name in means}, 1e-5)
