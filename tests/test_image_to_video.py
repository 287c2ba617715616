"""Video models that start from image models. Oracle: the image model applied to each frame."""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import numpy as np
import pytest
from checkpoint_files import checkpoint, tiny_state
from torch_writer import save_zip

from bsq_jax import cli
from bsq_jax.config import finalize, load_config_file, set_value, to_json
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.trees import leaves
from bsq_jax.training.adapt_weights import adapt
from bsq_jax.training.export import save_export
from bsq_jax.training.initial_state import place
from bsq_jax.training.recipes.tokenizer import TokenizerRecipe
from bsq_jax.training.saved_models import SavedModel, load_saved_model
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.workdir import open_checkpoints, write_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
FRAMES = 3


def config_of(init="", **model):
    config = load_config_file(TINY)
    config.train.init = str(init)
    for key, value in model.items():
        set_value(config, f"model.{key}", str(value))
    return finalize(config)


def random_weights(config):
    """Two sets of parameters of ordinary size, so that nothing is hidden by zeros."""
    abstract = make_tokenizer_task(config).abstract_state(make_mesh()).params
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape))  # noqa: E731
    return {name: jax.tree.map(draw, abstract) for name in ("raw", "ema")}


def export(folder, **model):
    config = config_of(**model)
    save_export(folder, config, random_weights(config), origin={})


def workdir(folder):
    config, mesh = config_of(), make_mesh(devices=jax.devices()[:1])
    task = make_tokenizer_task(config)
    weights = random_weights(config)
    abstract = task.abstract_state(mesh)
    raw, ema = (place(weights[name], abstract.params) for name in ("raw", "ema"))
    state = dataclasses.replace(task.init_state(mesh), params=raw, ema=ema)
    write_config(folder, config)
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(0, state, {"config": to_json(config), "history": []})


def converted(folder):
    folder.mkdir()
    save_zip(folder / "theirs.pt", checkpoint(tiny_state()))
    words = [str(folder / name) for name in ("theirs.pt", "export")]
    assert cli.main(["convert", *words, "--heads", "2"]) == 0
    return folder / "export"


ORIGINS = {
    "workdir": workdir,
    "converted": converted,
    "learned": export,
    "sincos": functools.partial(export, positions="sincos"),
    "rotary": functools.partial(export, positions="rotary"),
}


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """The path of an image model of a kind, made once."""
    folder = tmp_path_factory.mktemp("image_models")

    @functools.cache
    def make(kind):
        return ORIGINS[kind](folder / kind) or folder / kind

    return make


@pytest.fixture(scope="module")
def reconstruct():
    """Pixels and bits of clips; an image model has them frame by frame."""
    compiled = {}

    def run(config, params, pixels):
        with config.unlocked():
            config.model.dtype = "float32"  # a converted model's is bfloat16
        kind = json.dumps(to_json(config)["model"])  # a config is no key
        if kind not in compiled:
            compiled[kind] = jax.jit(make_tokenizer_task(config).reconstruct)
        output = compiled[kind](params, pixels)
        return np.asarray(output.pixels), np.asarray(output.quantized.bits)

    return run


def clips(time, side=16):
    shape = (2, time, side, side, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def begin(path, mesh=None, **model):
    """The first state of a run from the weights in `path`, its config and the line in its log."""
    saved = load_saved_model(path, ()).config.model
    keys = ("width", "layers", "heads", "bits", "head_hidden", "positions", "image_size", "frames")
    config = config_of(path, **{key: saved[key] for key in keys} | model)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    state, said = TokenizerRecipe(config, pathlib.Path(), mesh).new_state()
    return state, config, said


def assert_frames_equal(ours, theirs, frames=slice(None)):
    (pixels, bits), (wanted_pixels, wanted_bits) = ours, theirs
    chex.assert_trees_all_equal(bits[:, frames], wanted_bits[:, frames], strict=True)
    pixels, wanted_pixels = pixels[:, frames], wanted_pixels[:, frames]
    chex.assert_trees_all_close(pixels, wanted_pixels, rtol=0, atol=1e-6, strict=True)


@pytest.mark.parametrize(
    "kind", ["workdir", "converted", pytest.param("learned", marks=pytest.mark.smoke), "rotary"]
)
def test_with_a_window_of_one_frame_it_begins_as_the_image_model(image_model, reconstruct, kind):
    image = load_saved_model(image_model(kind))
    state, config, said = begin(image_model(kind), frames=FRAMES, window=1)
    how = (
        "rotary positions are computed" if kind == "rotary" else "temporal positions start at zero"
    )
    assert said.endswith(f"; model.frames 1 -> 3: {how}; model.window 0 -> 1")
    for params, given in ((state.params, image.weights["raw"]), (state.ema, image.weights["ema"])):
        for time in (2, FRAMES) if kind == "learned" else (FRAMES,):
            ours = reconstruct(config, params, clips(time))
            assert_frames_equal(ours, reconstruct(image.config, given, clips(time)))


@pytest.mark.parametrize("kind", ["learned", "sincos", "rotary"])
def test_without_a_window_its_single_frames_are_the_image_models(image_model, reconstruct, kind):
    image = load_saved_model(image_model(kind))
    state, config, _ = begin(image_model(kind), frames=FRAMES)
    theirs = reconstruct(image.config, image.weights["raw"], clips(FRAMES))
    assert_frames_equal(reconstruct(config, state.params, clips(FRAMES)[:, :1]), theirs, slice(1))
    ours = reconstruct(config, state.params, clips(FRAMES))
    assert_frames_equal(ours, theirs, slice(1))  # nor do later frames change it
    assert (ours[1] != theirs[1])[:, 1:].mean() > 0.01  # whereas these see more than before


def test_sines_along_time_are_new_to_an_image_model(image_model, reconstruct):
    image = load_saved_model(image_model("sincos"))
    state, config, said = begin(image_model("sincos"), frames=FRAMES, window=1)
    assert "model.frames 1 -> 3: sincos positions are computed" in said
    ours = reconstruct(config, state.params, clips(FRAMES))
    theirs = reconstruct(image.config, image.weights["raw"], clips(FRAMES))
    assert_frames_equal(ours, theirs, slice(1))
    assert (ours[1] != theirs[1])[:, 1:].mean() > 0.01


def positions_of(params):
    return {half: params[half]["trunk"]["positions"] for half in ("encoder", "decoder")}


def test_a_larger_picture_has_its_positions_interpolated(image_model):
    image = load_saved_model(image_model("learned"))
    state, _, said = begin(image_model("learned"), image_size="24x32", frames=FRAMES)
    assert "model.image_size 16x16 -> 24x32: spatial positions 2x2 -> 3x4 interpolated" in said
    for half, found in positions_of(state.params).items():
        given = positions_of(image.weights["raw"])[half]["spatial"].reshape(2, 2, -1)
        table = np.asarray(found["spatial"]).reshape(3, 4, -1)
        # The middle of an odd side lies in the middle of two.
        np.testing.assert_allclose(table[1].mean(0), given.mean((0, 1)), atol=1e-6)
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            distance = np.abs(given - table[corner]).max(-1)
            assert np.unravel_index(distance.argmin(), (2, 2)) == tuple(np.mod(corner, 2))
        assert not np.asarray(found["temporal"]).any()
    rotary, _, said = begin(image_model("rotary"), image_size=24)
    assert "model.image_size 16x16 -> 24x24: rotary positions are computed" in said
    given = load_saved_model(image_model("rotary")).weights["raw"]
    chex.assert_trees_all_equal(rotary.params, given, strict=True)


def test_other_numbers_of_frames(reconstruct):
    video = config_of(frames=FRAMES)
    initial = SavedModel(video, random_weights(video), {})
    given = initial.weights["raw"]
    wanted = reconstruct(video, given, clips(2))
    for frames, how in ((2, "the first 2 temporal positions"), (5, "after 3 start as the last")):
        config = config_of(frames=frames)
        weights, (said,) = adapt(initial, config)
        assert said.startswith(f"model.frames 3 -> {frames}: ")
        assert said.endswith(how)
        assert_frames_equal(reconstruct(config, weights["raw"], clips(2)), wanted)
        table = positions_of(weights["ema"])["decoder"]["temporal"]
        before = positions_of(initial.weights["ema"])["decoder"]["temporal"]
        np.testing.assert_array_equal(table, before[[0, 1, 2, 2, 2][:frames]])
    config = config_of(frames=1)
    weights, (said,) = adapt(initial, config)
    assert said == "model.frames 3 -> 1: the first temporal position is added to the spatial ones"
    assert_frames_equal(reconstruct(config, weights["raw"], clips(2)[:, :1]), wanted, slice(1))
    assert "temporal" in positions_of(given)["encoder"]  # what was given stays as it was


def test_the_positions_of_a_window_are_of_any_size(reconstruct):
    """Those along time are added as with positions of whole frames."""
    window = {"positions": "window", "spatial_window": 2}
    before = config_of(**window)
    weights = random_weights(before)
    after = config_of(**window, image_size="24x32", frames=FRAMES, window=1)
    adapted, said = adapt(SavedModel(before, weights, {}), after)
    assert said[:2] == [
        "model.frames 1 -> 3: temporal positions start at zero",
        "model.image_size 16x16 -> 24x32: spatial positions are those of a window at any size",
    ]
    for name, found in adapted.items():
        for half, positions in positions_of(found).items():
            given = positions_of(weights[name])[half]["spatial"]
            np.testing.assert_array_equal(positions["spatial"], given)
            assert not positions["temporal"].any()
    wanted = reconstruct(before, weights["raw"], clips(FRAMES))
    assert_frames_equal(reconstruct(after, adapted["raw"], clips(FRAMES)), wanted)


def test_causality_needs_nothing_and_is_said():
    before, after = config_of(), config_of(causality="token_causal")
    weights = {"raw": {"w": np.zeros(2)}, "discriminator": {}}
    found, said = adapt(SavedModel(before, weights, {}), after)
    assert (found, said) == (weights, ["model.causality block_causal -> token_causal"])
    assert adapt(SavedModel(before, weights, {}), before) == (weights, [])


@pytest.mark.usefixtures("eight_devices")
def test_what_is_adapted_lies_on_the_mesh(image_model):
    mesh = make_mesh(fsdp=2, tensor=2)
    state, config, _ = begin(image_model("learned"), mesh, frames=FRAMES, image_size=32)
    abstract = make_tokenizer_task(config).abstract_state(mesh)
    for field in ("params", "ema"):
        chex.assert_trees_all_equal_shapes_and_dtypes(
            getattr(state, field), getattr(abstract, field)
        )
        wanted = leaves(getattr(abstract, field))
        for name, leaf in leaves(getattr(state, field)).items():
            assert leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim), name


def test_mistakes(image_model):
    path = image_model("learned")
    with pytest.raises(UserError, match=r"init\) holds another model \(model.width: 16 -> 32\)"):
        begin(path, width=32, frames=FRAMES)
    with pytest.raises(UserError, match=r"image_size, model\.causality and model\.window may diff"):
        begin(path, positions="rotary", width=24, frames=FRAMES)
    config = config_of()
    weights = random_weights(config)
    del weights["ema"]["encoder"]["trunk"]["positions"]["spatial"]
    with pytest.raises(UserError, match="do not fit their own config: see encoder/trunk/positions"):
        adapt(SavedModel(config, weights, {}), config_of(frames=2))
