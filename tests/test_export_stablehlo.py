"""Exports as programs. Oracles: `Tokenizer` to the bit, jax alone in a process, XLA's text."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bsq_jax import Tokenizer, cli
from bsq_jax.config import finalize, set_overrides
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.target import platform
from bsq_jax.inference import portable as programs
from bsq_jax.inference.portable import make_portable, why_one_size
from bsq_jax.inference.portable_folder import PortableFolder
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training.export import identity
from bsq_jax.training.lowered import read
from bsq_jax.training.workdir import write_config

WINDOWS = ("model.positions=window", "model.spatial_window=2", "model.head_channels=4")
VQ = ("quantizer.name=vq", "quantizer.codes=50", "model.bits=0")
# Settings and sizes (examples, height, width); tiny pictures are 2x2 tokens.
MODELS = {
    "learned": ((), [(1, 16, 16), (5, 16, 16)]),
    "windows": (WINDOWS, [(1, 16, 16), (3, 24, 40)]),
    "vq": ((*VQ, "model.positions=rotary", "model.spatial_window=2"), [(2, 24, 8)]),
    "clips": (("model.frames=5", "model.patch_time=2"), [(2, 16, 16)]),
}


@functools.cache
def tokenizer_of(*words):
    """With random parameters."""
    config = tiny.get_config()
    set_overrides(config, [f"--config.{word}" for word in words])
    config = finalize(config)
    pixels = jax.ShapeDtypeStruct((1, 1, *config.model.image_size, 3), np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(make_tokenizer(config).init, jax.random.key(0), pixels))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"]
    )
    return Tokenizer(config, params, {"name": "tiny", "step": 3})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders by the name of the model, each made once."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        PortableFolder(tokenizer_of(*MODELS[name][0])).save(folder)
        return folder

    return make


def load(folder, name):
    """A program, and its weights."""
    program = jax.export.deserialize(bytearray((folder / f"{name}.bin").read_bytes()))
    return program, arrays(folder / f"{name}.npz")


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def random_pixels(*shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_bits_and_pixels_are_those_of_the_package(name, exported):
    tokenizer, folder = tokenizer_of(*MODELS[name][0]), exported(name)
    (encode, encoder), (decode, decoder) = (load(folder, each) for each in ("encode", "decode"))
    for batch, height, width in MODELS[name][1]:
        time = (5,) if name == "clips" else ()
        pixels = random_pixels(batch, *time, height, width)
        bits = tokenizer.encode(pixels)
        assert len(np.unique(bits.reshape(-1, bits.shape[-1]), axis=0)) > 1
        made = np.asarray(jax.jit(encode.call)(encoder, pixels))
        np.testing.assert_array_equal(made, bits, strict=True)
        made = np.asarray(jax.jit(decode.call)(decoder, bits))
        np.testing.assert_array_equal(made, tokenizer.decode(bits, dtype="uint8"), strict=True)


@pytest.mark.parametrize("name", ["windows", "clips"])
def test_the_folder_says_what_is_in_it(name, exported):
    tokenizer, folder = tokenizer_of(*MODELS[name][0]), exported(name)
    said = json.loads((folder / "manifest.json").read_text())
    assert said["model"]["fingerprint"] == identity(tokenizer.config, tokenizer.params).hex()
    assert (said["model"]["name"], said["model"]["step"]) == ("tiny", 3)
    assert said["made_with"]["jax"] == jax.__version__
    assert said["size"] == (None if name == "windows" else [16, 16])
    assert (said["why_one_size"] is None) == (name == "windows")
    assert set(said["sha256"]) == {path.name for path in folder.iterdir()} - {
        "README.md",
        "manifest.json",
    }
    for file, wanted in said["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == wanted
    for each, entry in said["programs"].items():
        program, weights = load(folder, each)
        assert list(program.platforms) == said["platforms"] == ["cpu", "cuda", "tpu"]
        assert not program.disabled_safety_checks
        for array, aval in (
            (entry["input"], program.in_avals[-1]),
            (entry["output"], program.out_avals[0]),
        ):
            assert [str(n) for n in array["shape"]] == [str(n) for n in aval.shape]
            assert len(array["axes"]) == aval.ndim
            assert array["dtype"] == aval.dtype.name == "uint8"
        assert len(weights) == len(program.in_avals) - 1
    test = arrays(folder / "self_test.npz")
    np.testing.assert_array_equal(tokenizer.encode(test["pixels"]), test["bits"], strict=True)


ALONE = """
import sys
for name in {blocked}:
    sys.modules[name] = None  # an import of it fails
exec(sys.stdin.read())
"""


@pytest.mark.parametrize("name", ["learned", "windows"])
def test_jax_alone_runs_it(name, exported):
    """The lines of its README, in a process that has jax and numpy only."""
    folder = exported(name)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", lines, re.MULTILINE)) == {"jax", "numpy"}
    blocked = ["bsq_jax", "flax", "einops", "ml_collections", "safetensors", "optax", "orbax"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE.format(blocked=blocked)],
        input=lines,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["100.00%"] * 2


@pytest.mark.parametrize("name", ["encode", "decode"])
@pytest.mark.parametrize("where", ["cuda", "tpu"])
def test_it_lowers_for_accelerators(name, where, exported):
    program, weights = load(exported("windows"), name)
    like = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in weights.items()}
    shape = (2, 24, 16, 3) if name == "encode" else (2, 3, 2, 6)
    traced = jax.jit(program.call).trace(like, jax.ShapeDtypeStruct(shape, np.uint8))
    lowered = read(traced.lower(lowering_platforms=(where,)))
    assert lowered.transfers == ()
    assert not any("cudnn" in call or "tpu_custom_call" in call for call in lowered.calls)


@pytest.mark.parametrize("where", ["cpu", "cuda", "tpu"])
def test_each_platform_has_its_own_code(where):
    """Oracle: what `bsq_jax.core.cpu` writes, and that others are asked for whole float32."""
    portable = make_portable(tokenizer_of(*WINDOWS))
    function = jax.jit(programs._for_each_platform(portable.functions["decode"]))
    text = jax.export.export(function, platforms=[where])(
        {key: programs._like(leaf) for key, leaf in portable.weights["decode"].items()},
        jax.ShapeDtypeStruct(portable.given("decode"), np.uint8),
    ).mlir_module()
    products = re.findall(r"stablehlo\.dot_general .*", text)
    exact = ["HIGHEST" in product for product in products]
    assert len(exact) > 4
    assert not any(exact) if where == "cpu" else all(exact)
    assert ("erfc" in text) == (where != "cpu")


def test_each_platform_is_traced_as_itself():
    portable = make_portable(tokenizer_of())
    seen = []

    def noted(weights, x):
        seen.append(platform())
        return x

    dataclasses.replace(portable, functions={"encode": noted}).exported("encode")
    assert seen == ["cpu", "gpu", "tpu"]


def test_in_bfloat16_it_needs_no_kernels_of_a_device():
    tokenizer = tokenizer_of("model.dtype=bfloat16")
    program = make_portable(tokenizer).exported("decode")
    assert "bf16" in program.mlir_module()
    assert "cudnn" not in program.mlir_module()
    for kernel in ("cudnn", "splash"):
        model = programs._without_kernels(tokenizer.model.clone(attention=kernel))
        assert model.attention in ("auto", "blocked")


def test_weights_can_be_put_into_the_program(exported):
    """As docs/deployment.md says."""
    program, weights = load(exported("learned"), "encode")
    baked = jax.export.export(
        jax.jit(lambda x: program.call(weights, x)), platforms=program.platforms
    )(jax.ShapeDtypeStruct(program.in_avals[-1].shape, jnp.uint8))
    alone = jax.export.deserialize(baked.serialize())
    test = arrays(exported("learned") / "self_test.npz")
    np.testing.assert_array_equal(alone.call(test["pixels"]), test["bits"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (WINDOWS, ""),
        (("model.spatial_window=2",), "learned positions are interpolated"),
        (("model.positions=sincos",), "attention sees whole frames"),
        (("model.positions=sincos", "model.spatial_window=4"), ""),
        (("model.positions=rotary", "model.spatial_window=4", "model.heads=1"), ""),
    ],
)
def test_why_there_is_one_size(words, said):
    found = why_one_size(tokenizer_of(*words).shape)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_other_sizes_and_lengths_are_the_packages_too():
    tokenizer = tokenizer_of("model.frames=4", "model.positions=rotary", "model.heads=1")
    portable = make_portable(tokenizer, size=(8, 24), frames=2)
    assert [str(n) for n in portable.given("encode")] == ["batch", "2", "8", "24", "3"]
    pixels = random_pixels(1, 2, 8, 24)
    program = portable.exported("encode")
    made = jax.jit(program.call)(portable.weights["encode"], pixels)
    np.testing.assert_array_equal(made, tokenizer.encode(pixels))
    for wrong in ({"size": (8, 20)}, {"frames": 0}):
        with pytest.raises(UserError, match=r"give (multiples of the patch, 8x8|1 or more)"):
            make_portable(tokenizer, **wrong)
    with pytest.raises(UserError, match="learned positions for 4"):
        make_portable(tokenizer_of("model.frames=4"), frames=5)


def test_what_calls_the_host_is_refused_in_one_line():
    def calling(weights, x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    portable = make_portable(tokenizer_of())
    with pytest.raises(UserError, match="encode cannot be exported as StableHLO") as found:
        dataclasses.replace(portable, functions={"encode": calling}).exported("encode")
    assert "\n" not in str(found.value)


def test_flatbuffers_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install flatbuffers"):
        make_portable(tokenizer_of())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "out", "--format", "stablehlo", "--half"), "--half is for --format safetensors"),
        (("model", "out", "--dtype", "bfloat16"), "--dtype is for --format stablehlo"),
        (("model", "out", "--format", "stablehlo", "--size", "16"), "give HEIGHTxWIDTH in pixels"),
        (("model", "--format", "stablehlo", "--size", "9x9", "out"), "multiples of the patch, 8x8"),
        (("lm", "out", "--format", "stablehlo"), "export its tokenizer, lm/tokenizer"),
        (("gone", "out", "--format", "stablehlo"), "gone does not exist"),
        (("model", "--format", "stablehlo"), "model exists: choose another folder"),
    ],
)
def test_mistakes_get_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer_of().save("model")
    pathlib.Path("lm").mkdir()
    write_config("lm", finalize(tiny.get_masked_lm("model")))
    assert cli.main(["export", *words]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert not pathlib.Path("out").exists()


@pytest.mark.smoke
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer_of().save("model")
    assert cli.main(["export", "model", "--format", "stablehlo", "out"]) == 0
    assert "16x16, because learned positions" in capsys.readouterr().err
    program, weights = load(pathlib.Path("out"), "encode")
    pixels = random_pixels(2, 16, 16)
    made = jax.jit(program.call)(weights, pixels)
    np.testing.assert_array_equal(made, tokenizer_of().encode(pixels))


def test_the_starter_model_is_exported_where_none_is_named(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    say_once.cache_clear()
    assert cli.main(["export", "out", "--format", "stablehlo"]) == 0
    assert "no model is named: the starter model of bsq_jax is taken" in caplog.text
    said = capsys.readouterr().err
    assert "any size; the prior is not in it" in said
    program, weights = load(pathlib.Path("out"), "decode")
    tokenizer = Tokenizer.load()
    bits = np.random.default_rng(0).integers(0, 2, (1, 8, 8, tokenizer.shape.bits), np.uint8)
    made = jax.jit(program.call)(weights, bits)
    np.testing.assert_array_equal(made, tokenizer.decode(bits, dtype="uint8"))
