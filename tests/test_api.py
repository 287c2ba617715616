"""The Python API. Oracle: calls one picture at a time, and the arrays that were saved."""

import json
import pathlib
import re
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_errors import message_of

from bsq_jax.config import finalize, load_config_file, to_json
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.target import described
from bsq_jax.inference import checked_arrays, computation
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training.export import identity, load_export
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.workdir import open_checkpoints, write_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


def make_config(**model):
    config = load_config_file(TINY)
    config.model.update(**model)
    return finalize(config)


def make(frames=1, **model):
    config = make_config(frames=frames, **model)
    height, width = config.model.image_size
    pixels = jnp.zeros((1, frames, height, width, 3))
    params = jax.jit(make_tokenizer(config).init)(jax.random.key(1), pixels)["params"]
    # Kernels of the start are small; larger ones tell pictures apart.
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 3, nn.meta.unbox(params))
    return Tokenizer(config, params, {"weights": "raw", "step": 7})


@pytest.fixture(scope="module")
def tokenizer():
    return make()


@pytest.fixture(scope="module")
def video():
    return make(frames=3, image_size=(16, 24))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir whose averaged weights are half of the raw ones."""
    folder = tmp_path_factory.mktemp("api") / "run"
    config = make_config()
    state = make_tokenizer_task(config).init_state(make_mesh())
    state = state.replace(ema=jax.tree.map(lambda leaf: leaf / 2, state.params))
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(5, state, {"config": to_json(config), "next_batch": 5, "history": []})
    write_config(folder, config)
    return folder, jax.device_get(state.params)


def images(count, height=16, width=16, frames=None, seed=0):
    shape = (count, height, width, 3) if frames is None else (count, frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.smoke
def test_shapes_types_and_ranges(tokenizer):
    pixels = images(3)
    bits = tokenizer.encode(pixels)
    chex.assert_shape(bits, (3, 2, 2, 6))
    chex.assert_type(bits, np.uint8)
    assert set(np.unique(bits)) == {0, 1}
    decoded = tokenizer.decode(bits)
    as_bytes = tokenizer.decode(bits, dtype="uint8")
    chex.assert_shape([decoded, as_bytes], (3, 16, 16, 3))
    chex.assert_type([decoded, as_bytes], [np.float32, np.uint8])
    assert np.abs(decoded).max() <= 1
    np.testing.assert_allclose(as_bytes / 127.5 - 1, decoded, atol=0.5 / 127.5 + 1e-5)
    np.testing.assert_array_equal(tokenizer.reconstruct(pixels), decoded)
    np.testing.assert_array_equal(tokenizer.reconstruct(pixels, dtype="uint8"), as_bytes)
    for same in (bits.astype(bool), bits.astype(np.int64), bits.tolist()):
        np.testing.assert_array_equal(tokenizer.decode(same), decoded)


def test_videos(video):
    pixels = images(2, 16, 24, frames=3)
    bits = video.encode(pixels)
    chex.assert_shape(bits, (2, 3, 2, 3, 6))
    chex.assert_equal_shape([video.decode(bits), pixels])
    # Causal: shorter clips and single images are the beginnings of longer ones.
    np.testing.assert_array_equal(video.encode(pixels[:, :2]), bits[:, :2])
    np.testing.assert_array_equal(video.encode(pixels[:, 0], layout="NHWC"), bits[:, 0])
    np.testing.assert_allclose(video.decode(bits[:, :2]), video.decode(bits)[:, :2], atol=1e-5)


def test_bytes_and_floats_are_the_same_pictures(tokenizer):
    pixels = images(4)
    floats = pixels / 127.5 - 1
    bits = tokenizer.encode(pixels)
    np.testing.assert_array_equal(tokenizer.encode(floats), bits)  # float64
    np.testing.assert_array_equal(tokenizer.encode(floats.astype(np.float32)), bits)
    np.testing.assert_array_equal(tokenizer.encode(jnp.asarray(pixels)), bits)
    chex.assert_equal_shape([tokenizer.encode(jnp.asarray(floats, jnp.bfloat16)), bits])


def test_pixels_are_clamped(tokenizer):
    params = jax.tree.map(np.copy, tokenizer._params)
    params["decoder"]["head_out"]["bias"][:] = 5
    bright = Tokenizer(tokenizer.config, params)
    bits = tokenizer.encode(images(1))
    assert (bright.decode(bits) == 1).all()
    assert (bright.decode(bits, dtype="uint8") == 255).all()


def test_pieces_change_nothing_and_few_shapes_are_compiled(monkeypatch):
    monkeypatch.setattr(computation, "_MAX_TOKENS", 19)  # 4 tokens a picture: pieces of 4, 2 and 1
    monkeypatch.setattr(computation, "least_batch", lambda tokens: 1)
    tokenizer = make()
    pixels = images(11)
    alone_bits = np.concatenate([tokenizer.encode(pixels[i : i + 1]) for i in range(11)])
    alone = np.concatenate([tokenizer.decode(alone_bits[i : i + 1]) for i in range(11)])
    for count in (*range(1, 12), 0):
        bits = tokenizer.encode(pixels[:count])
        chex.assert_trees_all_equal(bits, alone_bits[:count], strict=True)
        chex.assert_shape(bits, (count, 2, 2, 6))
        decoded = tokenizer.decode(bits)
        chex.assert_shape(decoded, (count, 16, 16, 3))
        chex.assert_type(decoded, np.float32)
        np.testing.assert_allclose(decoded, alone[:count], atol=1e-5)
    chex.assert_type(tokenizer.decode(bits, dtype="uint8"), np.uint8)
    assert tokenizer.programs == (6, {(2, 2): 6})  # to encode and to decode


def test_few_small_pictures_are_computed_as_many(tokenizer):
    # Closed form: the power of two by which 64 tokens are reached.
    assert [checked_arrays.least_batch(tokens) for tokens in (1, 4, 33, 64, 999)] == [
        *(64, 16, 2, 1, 1)
    ]
    before = tokenizer.programs.compiled
    for count in (1, 5, 16):
        tokenizer.encode(images(count))
    assert tokenizer.programs.compiled <= before + 1
    pixels = images(38)  # 32 + 6
    bits = tokenizer.encode(pixels)
    decoded = tokenizer.decode(bits)
    for i in (0, 31, 32, 37):
        np.testing.assert_array_equal(tokenizer.encode(pixels[i : i + 1]), bits[i : i + 1])
        np.testing.assert_allclose(tokenizer.decode(bits[i : i + 1])[0], decoded[i], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 5, 8, 13, 64])
def test_pieces_cover_each_row_once(count):
    cut = list(checked_arrays.chunks(count, 8))
    assert [i for piece in cut for i in range(piece.start, piece.stop)] == list(range(count))
    assert {piece.stop - piece.start for piece in cut} <= {1, 2, 4, 8}
    cut = list(checked_arrays.chunks(count, 8, least=4))
    assert [i for piece in cut for i in range(piece.start, piece.stop)] == list(range(count))
    assert {piece.stop - piece.start for piece in cut[:-1]} <= {4, 8}
    cut = list(checked_arrays.chunks(count, 8, least=2, step=4))
    assert [i for piece in cut for i in range(piece.start, piece.stop)] == list(range(count))
    assert {piece.stop - piece.start for piece in cut[:-1]} <= {2, 8}


def test_memory_is_bounded_for_long_clips(video):
    # Closed form: 16,384 tokens at once, 6 a frame; at least 16 clips, because they are small.
    most = video._computation.max_batch
    assert [most(frames, 6) for frames in (1, 10, 1000)] == [2048, 256, 16]
    assert [most(frames, 64) for frames in (1, 4, 100, 1000)] == [256, 64, 2, 1]


def test_clips_longer_than_trained(video):
    pixels = images(1, 16, 24, frames=5)
    message = message_of(video.encode, pixels)
    assert message.startswith("a clip of 5 frames: this model has learned positions for 3")
    assert "a clip of 5 frames" in message_of(video.decode, np.zeros((1, 5, 2, 3, 6), int))
    rotary = make(frames=3, image_size=(16, 24), positions="rotary", width=24)
    bits = rotary.encode(pixels)
    chex.assert_shape(bits, (1, 5, 2, 3, 6))
    chex.assert_equal_shape([rotary.decode(bits), pixels])
    np.testing.assert_array_equal(rotary.encode(pixels[:, :3]), bits[:, :3])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (
            np.zeros(16, np.uint8),
            "pixels have shape (16,): give a picture [height, width, 3], a ba",
        ),
        (np.zeros((1, 3, 16, 16), np.uint8), "the channels come first: say layout='NCHW'"),
        (np.zeros((1, 16, 0, 3), np.uint8), "a picture of 16x0 pixels (height x width): give 1x1"),
        (np.zeros((1, 2, 16, 16, 3), np.uint8), "a clip of 2 frames: this model takes 1 frame"),
        (np.zeros((1, 0, 16, 16, 3), np.uint8), "a clip of 0 frames"),
        (np.zeros((1, 16, 16, 3), np.int32), "pixels are int32: give uint8 in 0..255 or floats"),
        (np.zeros((1, 16, 16, 3), bool), "pixels are bool"),
        (np.full((1, 16, 16, 3), 255.0), "but reach from 255 to 255: give uint8, or scale"),
        (np.full((1, 16, 16, 3), np.nan), "float pixels must lie in [-1, 1]"),
        (np.full((1, 16, 16, 3), -1.5), "float pixels must lie in [-1, 1]"),
    ],
)
def test_pixels_are_checked(tokenizer, pixels, words):
    assert words in message_of(tokenizer.encode, pixels)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (np.zeros((2, 2), int), "of integers from Tokenizer.ids give Tokenizer.bits(ids)"),
        (
            np.zeros((2, 6), int),
            "bits have shape (2, 6): this model takes [row, column, 6], [batch",
        ),
        (np.zeros((1, 2, 2, 7), int), "[batch, row, column, 6]"),
        (np.zeros((0, 2, 6), int), "bits have shape (0, 2, 6)"),
        (np.zeros((1, 2, 2, 2, 6), int), "a clip of 2 frames"),
        (np.full((1, 2, 2, 6), 2), "bits must be integers or booleans, all 0 or 1"),
        (np.full((1, 2, 2, 6), -1), "all 0 or 1"),
        (np.zeros((1, 2, 2, 6)), "bits must be integers or booleans"),
    ],
)
def test_bits_are_checked(tokenizer, bits, words):
    assert words in message_of(tokenizer.decode, bits)


@pytest.mark.parametrize(
    ("value_range", "scaled"),
    [
        ((-1, 1), lambda x: x / 127.5 - 1),
        ((0, 1), lambda x: x / 255),
        ((0, 255), lambda x: x),
        ((0.0, 255.0), lambda x: x.astype(np.float64)),
    ],
)
def test_floats_in_every_range_are_the_bytes_that_they_were(tokenizer, value_range, scaled):
    pixels = images(16)
    floats = scaled(pixels.astype(np.float32))
    bits = tokenizer.encode(pixels)
    np.testing.assert_array_equal(tokenizer.encode(floats, value_range=value_range), bits)
    np.testing.assert_array_equal(
        tokenizer.reconstruct(floats, value_range=value_range, dtype="uint8"),
        tokenizer.reconstruct(pixels, dtype="uint8"),
    )
    clips = tokenizer.encode_parts(floats[:, None], value_range=value_range)
    np.testing.assert_array_equal(clips[:, 0], bits)
    stream = tokenizer.stream(batch=16)
    np.testing.assert_array_equal(stream.encode(floats, value_range=value_range), bits)


def test_floats_between_0_and_1_are_warned_of_once_a_call(tokenizer):
    floats = images(1).astype(np.float32) / 255
    for call in (tokenizer.encode, tokenizer.reconstruct, tokenizer.stream().encode):
        with pytest.warns(
            UserWarning, match=r"all of these lie in \[0, 1\]: .*value_range"
        ) as told:
            call(floats)
        assert len(told) == 1
    with pytest.warns(UserWarning, match="value_range"):
        tokenizer.encode_parts(floats[:, None])
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        with pytest.warns(UserWarning, match="value_range"):
            tokenizer.encode(floats.astype(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(floats, value_range=(-1, 1))  # as bright as it says
        tokenizer.encode(2 * floats - 1)
        tokenizer.encode(np.zeros((0, 16, 16, 3), np.float32))


def test_a_stated_range_is_checked(tokenizer):
    floats = images(1).astype(np.float32)
    for pixels, value_range, words in (
        (floats, (0, 1), "must lie in [0, 1], but reach from 0 to 255: as value_range says"),
        (floats / 127.5 - 1, (0, 1), "must lie in [0, 1], but reach from -1 to 1"),
        (floats + 1, (0, 255), "must lie in [0, 255], but reach from 1 to 256"),
        (np.full_like(floats, np.nan), (0, 1), "must lie in [0, 1]"),
        (floats, None, "must lie in [-1, 1], but reach from 0 to 255: give uint8"),
        (floats, (0, 2), "value_range=(0, 2): it must be one of (-1, 1), (0, 1), (0, 255)"),
        (images(1), (0, 1), "pixels are uint8, in 0..255, but value_range is (0, 1)"),
        (images(1).astype(int), (0, 255), "pixels are int64"),
    ):
        assert words in message_of(tokenizer.encode, pixels, value_range=value_range)
    np.testing.assert_array_equal(
        tokenizer.encode(images(1), value_range=(0, 255)), tokenizer.encode(images(1))
    )


def test_other_mistakes(tokenizer, video, tmp_path):
    bits = tokenizer.encode(images(1))
    assert "decode gives float32 or uint8" in message_of(tokenizer.decode, bits, dtype="float16")
    message = message_of(Tokenizer, video.config, tokenizer._params)
    assert message.startswith("the weights do not fit the config: ")
    assert "does not exist" in message_of(Tokenizer.load, tmp_path / "nothing")
    assert "neither a workdir nor an export" in message_of(Tokenizer.load, tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot write the export" in message_of(tokenizer.save, tmp_path / "file" / "export")


def test_num_params_counts_every_number(tokenizer):
    leaves = jax.tree.leaves(tokenizer._params)
    assert tokenizer.num_params == sum(leaf.size for leaf in leaves) > 1000


def test_an_export_is_the_same_tokenizer(tokenizer, video, tmp_path):
    for number, original in enumerate((tokenizer, video)):
        folder = tmp_path / "deep" / str(number)
        original.save(folder)
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "raw.safetensors"]
        loaded = Tokenizer.load(folder)
        assert loaded.origin == {"weights": "raw", "step": 7}
        assert to_json(loaded.config) == to_json(original.config)
        pixels = images(3, *original.config.model.image_size)
        bits = original.encode(pixels, layout="NHWC")
        np.testing.assert_array_equal(loaded.encode(pixels, layout="NHWC"), bits)
        np.testing.assert_array_equal(loaded.decode(bits), original.decode(bits))
    assert "holds no ema weights: load with weights='raw'" in message_of(
        Tokenizer.load, folder, weights="ema"
    )


def edited(**changes):
    def edit(folder):
        path = folder / "config.json"
        described = json.loads(path.read_text()) | changes
        described = {key: value for key, value in described.items() if value is not None}
        path.write_text(json.dumps(described))

    return edit


def cut(folder):
    path = folder / "raw.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def flip(folder):
    path = folder / "raw.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "raw.safetensors is damaged or not the one"),
        (flip, "raw.safetensors is damaged or not the one"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: No such file"),
        (lambda folder: (folder / "raw.safetensors").unlink(), "raw.safetensors: No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "does not describe a bsq_jax"),
        (edited(format="another"), "does not describe a bsq_jax tokenizer"),
        (edited(version=1), "is an export of an older bsq_jax (version 1; this one reads 2)"),
        (edited(version=4), "has export version 4, but this bsq_jax reads 2 and 3: update bsq_jax"),
        (edited(version=None), "has export version None"),
        (edited(weights=None), "has no 'weights'"),
        (edited(weights={}), "does not say which weights there are"),
        (edited(weights={"raw": {}}), "does not say which weights there are"),
        (edited(weights={"discriminator": {"sha256": ""}}), "does not say which weights"),
        (edited(config={"model": {"colour": 1}}), "unknown config key model.colour"),
    ],
)
def test_a_damaged_export(tokenizer, tmp_path, damage, words):
    tokenizer.save(tmp_path)
    damage(tmp_path)
    assert words in message_of(Tokenizer.load, tmp_path)


def test_loading_from_a_workdir(workdir):
    folder, raw = workdir
    for weights, factor, label in (("raw", 1, "raw"), ("ema", 0.5, "ema"), ("auto", 0.5, "ema")):
        loaded = Tokenizer.load(folder, weights=weights)
        assert loaded.origin == {"name": "run", "weights": label, "step": 5}
        jax.tree.map(
            lambda a, b, factor=factor: np.testing.assert_array_equal(a, b * factor),
            loaded._params,
            raw,
        )
    assert "must be one of auto, raw, ema" in message_of(Tokenizer.load, folder, weights="best")
    assert "model.dtype is 'int8'" in message_of(Tokenizer.load, folder, dtype="int8")


def test_weights_that_are_not_there(tokenizer, tmp_path):
    config = make_config()
    config = config.copy_and_resolve_references()
    config.optimizer.ema = 0.0
    state = make_tokenizer_task(config).init_state(make_mesh())
    with open_checkpoints(tmp_path / "run") as checkpoints:
        meta = {"config": to_json(config), "next_batch": 5, "history": []}
        checkpoints.save(5, state, meta)
    write_config(tmp_path / "run", config)
    assert Tokenizer.load(tmp_path / "run").origin["weights"] == "raw"
    averaged = Tokenizer(tokenizer.config, tokenizer._params, {"weights": "ema"})
    averaged.save(tmp_path / "export")
    for name, missing, other in (("run", "ema", "raw"), ("export", "raw", "ema")):
        folder = tmp_path / name
        message = message_of(Tokenizer.load, folder, weights=missing)
        assert message == f"{folder} holds no {missing} weights: load with weights='{other}'"


def test_a_cpu_computes_in_float32_unless_told_otherwise(tokenizer, tmp_path, caplog):
    config = tokenizer.config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    Tokenizer(config, tokenizer.params).save(tmp_path)
    with caplog.at_level("INFO"):
        usual = Tokenizer.load(tmp_path)
    assert "computes in float32 on this CPU; its config says bfloat16" in caplog.text
    assert "float32" in repr(usual)
    pixels = images(16)
    np.testing.assert_array_equal(usual.encode(pixels), tokenizer.encode(pixels))
    np.testing.assert_array_equal(usual.reconstruct(pixels), tokenizer.reconstruct(pixels))
    quick = Tokenizer.load(tmp_path, dtype="bfloat16")
    assert "bfloat16" in repr(quick)
    assert np.any(quick.reconstruct(pixels) != usual.reconstruct(pixels))

    usual.save(tmp_path / "again")  # says what the model says, not what this machine prefers
    assert load_export(tmp_path / "again")[0].model.dtype == "bfloat16"
    assert identity(usual.config, usual.params) == identity(quick.config, quick.params)


def test_an_accelerator_computes_as_the_config_says(tokenizer, tmp_path, monkeypatch):
    config = tokenizer.config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    Tokenizer(config, tokenizer.params).save(tmp_path)
    monkeypatch.setattr("bsq_jax.inference.tokenizer.platform", lambda: "gpu")
    assert Tokenizer.load(tmp_path).config.model.dtype == "bfloat16"


def products(lowered):
    """The precision of each matrix product in a program, empty where it is the default."""
    lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert lines
    return [(re.findall(r"precision = \[(\w+), \w+\]", line) or [""])[0] for line in lines]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_float32_on_accelerators(tokenizer, dtype):
    """By default a GPU would round the factors to TF32, and a TPU to bfloat16."""
    config = tokenizer.config.copy_and_resolve_references()
    config.model.update(dtype=dtype, attention="dense")
    pixels = jax.ShapeDtypeStruct((32, 1, 16, 16, 3), np.uint8)
    bits = jax.ShapeDtypeStruct((32, 1, 2, 2, 6), np.uint8)
    with described("gpu"):
        made = Tokenizer(config, tokenizer.params)
        programs = [
            jax.jit(made._computation.functions[what]).trace(made.params, array, None)
            for what, array in (("encode", pixels), ("float32", bits))
        ]
        shape = made.shape
        stream = jax.jit(made._computation.streams.functions["encode"])
        positions = shape.frame_positions(1)
        programs.append(stream.trace(made.params, pixels, positions, None, None))
    for program in programs:
        precisions = products(program.lower(lowering_platforms=("cuda",)))
        exact = [name == "HIGHEST" for name in precisions]
        assert all(exact) if dtype == "float32" else not all(exact)


def test_bfloat16_computes_nearly_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    quick = Tokenizer.load(tmp_path, dtype="bfloat16")
    assert quick.config.model.dtype == "bfloat16"
    pixels = images(16)
    bits = tokenizer.encode(pixels)
    assert np.mean(quick.encode(pixels) == bits) > 0.95
    decoded = quick.decode(bits)
    chex.assert_type(decoded, np.float32)
    np.testing.assert_allclose(decoded, tokenizer.decode(bits), atol=0.05)
    quick.save(tmp_path / "again")  # the parameters are still the float32 ones
    again = Tokenizer.load(tmp_path / "again", dtype="float32")
    np.testing.assert_array_equal(again.decode(bits), tokenizer.decode(bits))
