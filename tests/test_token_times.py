"""Tokens of several frames. Oracles: loops in numpy, clips filled by hand, the whole clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import bsq_quantizer, tokenizer_shape
from small_task import tokenizer_task
from test_strides import TINY, made, pixels_of, tiny_config, tokenizer_of

from bsq_jax.config import finalize, fingerprint_settings, from_json, to_json
from bsq_jax.core.errors import UserError
from bsq_jax.inference.token_sets import tokenize
from bsq_jax.models.patches import ended_with_last, patchify, unpatchify, whole_groups
from bsq_jax.models.tokenizer import TokenizerModel


def shape_of(**changes):
    return tokenizer_shape(**{**TINY, "frames": 5, "patch_time": 2, **changes})


@pytest.mark.parametrize("time", [2, 4])
def test_patches_over_frames_are_cut_as_a_loop_cuts_them(time):
    pixels = pixels_of(2, 8, 16, 24)
    found = np.asarray(patchify(jnp.asarray(pixels), (8, 12), time))
    wanted = np.empty((2, 8 // time, 2, 2, 3 * 96 * time), np.float32)
    for t, row, column in np.ndindex(*wanted.shape[1:4]):
        piece = pixels[:, t * time :, row * 8 :, column * 12 :][:, :time, :8, :12]
        wanted[:, t, row, column] = np.moveaxis(piece, -1, 2).reshape(2, -1)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(unpatchify(jnp.asarray(found), (8, 12), time), pixels)


@pytest.mark.parametrize("time", [1, 2, 4])
@pytest.mark.parametrize("frames", range(1, 11))
def test_numbers_of_frames(time, frames):
    """Against the groups that a walk over the frames makes."""
    shape = shape_of(patch_time=time, frames=9)
    groups = 1 + sum(1 for first in range(1, frames, time))
    assert shape.token_frames(frames) == groups
    assert shape.token_frames(np.array([frames]))[0] == groups
    assert frames <= shape.video_frames(groups) < frames + time
    pixels = pixels_of(1, frames, 1, 1)
    ended = ended_with_last(pixels, time)
    assert ended.shape[1] == shape.video_frames(groups)
    np.testing.assert_array_equal(ended[:, :frames], pixels)
    assert (ended[:, frames:] == pixels[:, -1:]).all()
    whole = np.asarray(whole_groups(jnp.asarray(ended), time))
    assert whole.shape[1] == groups * time
    assert (whole[:, :time] == pixels[:, :1]).all()
    np.testing.assert_array_equal(whole[:, time:], ended[:, 1:])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_clip_of_any_length(positions):
    """An image is its first frame; a length in between is one that is filled up by hand."""
    model, params = made(shape_of(positions=positions, causality="block_causal"))
    pixels = pixels_of(1, 5, 32, 32)
    whole = model.apply({"params": params}, pixels)
    assert whole.quantized.bits.shape == (1, 3, 4, 4, 6)
    assert whole.pixels.shape == pixels.shape
    first = model.apply({"params": params}, pixels[:, :1])
    np.testing.assert_allclose(first.pixels, whole.pixels[:, :1], atol=1e-5)
    np.testing.assert_array_equal(first.quantized.bits, whole.quantized.bits[:, :1])
    short = model.apply({"params": params}, pixels[:, :4])
    filled = model.apply({"params": params}, pixels[:, [0, 1, 2, 3, 3]])
    np.testing.assert_array_equal(short.pixels, filled.pixels[:, :4])
    np.testing.assert_array_equal(short.quantized.bits, filled.quantized.bits)
    decoded = model.apply({"params": params}, whole.quantized.bits, method="decode")
    assert decoded.shape == (1, 5, 32, 32, 3)


def test_positions_have_one_place_for_each_frame_of_tokens():
    _, params = made(shape_of(frames=9, patch_time=4))
    for half in ("encoder", "decoder"):
        assert params[half]["trunk"]["positions"]["temporal"].shape == (3, 16)
    assert params["encoder"]["patch_embed"]["kernel"].shape == (4 * 192, 16)
    assert params["decoder"]["head_out"]["kernel"].shape == (16, 4 * 192)


def test_gradients_do_not_reach_later_groups():
    model, params = made(shape_of())
    pixels = jnp.asarray(pixels_of(1, 5, 32, 32))

    def seen(group):
        def loss(x):
            return jnp.sum(
                jnp.square(model.apply({"params": params}, x, method="latents")[:, group])
            )

        return np.abs(jax.grad(loss)(pixels)).max(axis=(0, 2, 3, 4)) > 0

    for group, last in enumerate((0, 2, 4)):
        np.testing.assert_array_equal(seen(group), np.arange(5) <= last)


def test_padding_of_clips_is_not_seen():
    """Clips of 1 to 5 frames in one batch, what lies behind them being anything."""
    model, params = made(shape_of(positions="rotary", causality="full"))
    pixels = pixels_of(5, 5, 32, 32)
    real = np.arange(1, 6)
    for row, frames in enumerate(real):
        pixels[row, frames:] = 7.0
    both = model.apply({"params": params}, pixels, jnp.asarray(real))
    for row, frames in enumerate(real):
        alone = model.apply({"params": params}, pixels[row : row + 1, :frames])
        times = alone.quantized.bits.shape[1]
        np.testing.assert_array_equal(
            both.quantized.bits[row : row + 1, :times], alone.quantized.bits
        )
        np.testing.assert_allclose(both.pixels[row : row + 1, :frames], alone.pixels, atol=1e-5)


# --- streams and the API ---


@pytest.mark.parametrize(("time", "window"), [(2, 0), (4, 2)])
def test_streams_are_their_clips(time, window):
    """Bits to the bit, with and without a window; the first frame alone, then groups."""
    tokenizer = tokenizer_of(
        frames=1 + 2 * time, patch_time=time, window=window, positions="rotary", head_channels=2
    )
    frames = 1 + 3 * time
    pixels = pixels_of(2, frames, 32, 32)
    stream = tokenizer.stream(batch=2)
    given = [stream.encode(pixels[:, t]) for t in range(frames)]
    kept = [t for t, bits in enumerate(given) if bits is not None]
    assert kept == [0, *range(time, frames, time)]
    assert (stream.encoded, stream.finish()) == (frames, None)
    bits = np.stack([given[t] for t in kept], 1)
    whole = tokenizer.encode(pixels)
    np.testing.assert_array_equal(bits, whole)
    parts = [stream.decode(bits[:, t]) for t in range(bits.shape[1])]
    assert [part.shape[1] for part in parts] == [1, *[time] * 3]
    assert stream.decoded == frames
    np.testing.assert_allclose(np.concatenate(parts, 1), tokenizer.decode(whole), atol=1e-5)


def test_a_stream_that_ends_within_a_group():
    tokenizer = tokenizer_of(frames=9, patch_time=4)
    pixels = pixels_of(1, 7, 32, 32)
    stream = tokenizer.stream()
    given = [stream.encode(pixels[:, t]) for t in range(7)]
    assert [bits is not None for bits in given] == [True, False, False, False, True, False, False]
    assert stream.encoded == 5
    last = stream.finish()
    wanted = tokenizer.encode(pixels)
    np.testing.assert_array_equal(np.stack([given[0], given[4], last], 1), wanted)
    assert stream.encoded == 9
    assert tokenizer.decode(wanted).shape[1] == 9
    assert tokenizer.decode(wanted, frames=7).shape[1] == 7
    np.testing.assert_array_equal(tokenizer.reconstruct(pixels), tokenizer.decode(wanted, frames=7))
    with pytest.raises(UserError, match="frames=5: 3 frames of tokens belong to clips of 6 to 9"):
        tokenizer.decode(wanted, frames=5)
    with pytest.raises(
        UserError, match="a clip of 13 frames: this model has learned positions for"
    ):
        tokenizer.decode(np.zeros((1, 4, 4, 4, 6), np.uint8))


def test_pictures_are_clips_of_one_frame():
    tokenizer = tokenizer_of(frames=5, patch_time=2)
    pixels = pixels_of(1, 3, 32, 32)
    picture = tokenizer.encode(pixels[0, 0])
    assert picture.shape == (4, 4, 6)
    assert tokenizer.decode(picture).shape == (32, 32, 3)
    np.testing.assert_array_equal(picture, tokenizer.encode(pixels)[0, 0])


# --- training ---


def test_a_step_counts_real_frames_and_tokens():
    """Losses of a padded batch are those of its clips, weighted by hand."""
    shape = shape_of(positions="rotary")
    model = TokenizerModel(shape, bsq_quantizer(length=6, commitment_weight=0.25))
    _, params = made(shape)
    task = tokenizer_task(model)
    pixels = pixels_of(3, 5, 32, 32)
    frames = np.array([1, 4, 5])
    step = jnp.zeros((), jnp.int32)

    def metrics(x, real):
        return jax.jit(lambda: task.gradients(params, None, x, real, step, {}))()[-1]

    together = metrics(jnp.asarray(pixels), jnp.asarray(frames))
    alone = [metrics(jnp.asarray(pixels[i : i + 1, :n]), None) for i, n in enumerate(frames)]
    tokens = [shape.token_frames(n) for n in frames]
    for key, weights in (("squared_error", frames), ("commitment", tokens)):
        wanted = np.average([each[key] for each in alone], weights=weights)
        np.testing.assert_allclose(together[key], wanted, rtol=1e-4, err_msg=key)
    finished = task._finished(together, jnp.asarray(pixels), jnp.asarray(frames))
    np.testing.assert_allclose(finished["psnr"], 10 * np.log10(4 / together["squared_error"]), 1e-5)


def test_flipped_bits_and_drawn_codes_are_of_tokens():
    task = tokenizer_task(TokenizerModel(shape_of(), bsq_quantizer(length=6)), flip=0.5)
    flipped = task.flipped_bits(jnp.zeros((2, 5, 32, 32, 3)), jnp.zeros((), jnp.int32))
    assert flipped.shape == (2, 3, 4, 4, 6)


# --- the setting, and what does not take such tokens ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_time": 3, "frames": 4}, "model.patch_time is 3: it must be 1, 2 or 4"),
        ({"patch_time": 2}, "model.frames is 1: with model.patch_time=2 a clip has the first"),
        ({"patch_time": 4, "frames": 8}, "and groups of 4, such as 9"),
    ],
)
def test_times_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        finalize(tiny_config(**changes))


def test_what_takes_tokens_of_single_frames_alone(tmp_path):
    tokenizer = tokenizer_of(frames=5, patch_time=2)
    with pytest.raises(UserError, match=r"model.patch_time is 2: sets of tokens are for models"):
        tokenize(tmp_path, tokenizer, tokenizer.config, examples=1, quiet=True)
    for task in ("prior", "masked_lm"):
        config = tiny_config(frames=5, patch_time=2)
        config.task, config[task].tokenizer = task, "x"
        with pytest.raises(UserError, match=f"model.patch_time is 2: task={task} takes tokens of"):
            finalize(config)
    config = tiny_config(frames=5, patch_time=2)
    config.train.accumulate, config.data.min_frames = 2, 2
    with pytest.raises(UserError, match=r"train.accumulate is not for clips of several lengths"):
        finalize(config)


def test_times_are_part_of_the_identity():
    config = finalize(tiny_config(frames=5, patch_time=2))
    assert fingerprint_settings(config)["model.patch_time"] == 2
    old = to_json(finalize(tiny_config(frames=5)))
    del old["model"]["patch_time"]
    assert from_json(old, "x").model.patch_time == 1
    assert "model.patch_time" not in fingerprint_settings(from_json(old, "x"))
