"""Every quantizer through the whole package: training, evaluation, export, codec, generation.

Trained in public entry points, at a tiny size. Binary spherical quantization is not here because
all other tests of training, codec and generation use it.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn
from small_codec import picture

from bsq_jax.coding.codec import Codec
from bsq_jax.coding.container import DamagedFile
from bsq_jax.coding.tile_tokenizer import TileCoder
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.inference.generator import Generator
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.training import train_run

# Settings of the quantizer, the bits of a token, codes of a stage.
KINDS = {
    "lfq": ({"name": "lfq"}, 6, 64),
    "fsq": ({"name": "fsq", "levels": (5, 5)}, 5, 25),
    "vq": (
        {"name": "vq", "codes": 20, "channels": 4, "learning": "ema", "restart": 0.1, "flip": 0.1},
        5,
        20,
    ),
    "leech": ({"name": "leech"}, 18, 196_560),
    "residual": ({"name": "vq", "codes": 6, "channels": 3, "stages": 2}, 6, 6),
}


def short(config, kind):
    """The config of a run of three steps of a tokenizer with a quantizer, or on its tokens."""
    settings, bits, _ = KINDS[kind]
    config.quantizer.update(settings)
    config.model.bits = bits if kind == "lfq" else 0
    config.train.update(steps=3, checkpoint_every=3, log_every=3)
    config.eval.update(neighbours=0, videos=0)
    return finalize(config)


# What comes after the tokenizer sees nothing of a quantizer but the layout of its tokens: those of
# lfq are laid out as those of bsq, those of vq as those of fsq.
LAYOUTS = pytest.mark.parametrize("kind", ["fsq", "leech", "residual"], indirect=True)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind, tmp_path_factory):
    """The workdir of a tokenizer."""
    folder = tmp_path_factory.mktemp(kind) / "tokenizer"
    train_run.train(short(tiny.get_config(), kind), folder)
    return folder


def results(folder: pathlib.Path):
    return json.loads((folder / "evaluation.json").read_text())["results"]


def test_training_evaluation_and_export(kind, trained, tmp_path):
    _, bits, codes = KINDS[kind]
    found = results(trained)
    for name in ("raw", "ema"):
        assert np.isfinite(found[name]["psnr"])
        assert 0 < found[name]["usage"] <= 1
    tokenizer = Tokenizer.load(trained)
    assert tokenizer.shape.bits == bits
    pixels = picture(16, 16, time=4)
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (4, 2, 2, bits)
    decoded = tokenizer.decode(tokens, dtype="uint8")
    tokenizer.save(tmp_path / "export")
    exported = Tokenizer.load(tmp_path / "export")
    np.testing.assert_array_equal(exported.encode(pixels), tokens)
    np.testing.assert_array_equal(exported.decode(tokens, dtype="uint8"), decoded)
    if codes < 2 ** len(np.base_repr(codes - 1)):
        wrong = np.ones_like(tokens)
        with pytest.raises(UserError, match=r"16 of 16 tokens name no code, the first at \[0, 0"):
            tokenizer.decode(wrong)
        with pytest.raises(UserError, match="tokens name no code"):
            tokenizer.stream(4).decode(wrong)


@LAYOUTS
def test_prior_and_files(kind, trained, tmp_path, monkeypatch):
    _, bits, _ = KINDS[kind]
    config = tiny.get_prior(trained)
    config.optimizer.ema = 0.0
    train_run.train(short(config, kind), tmp_path / "prior")
    found = results(tmp_path / "prior")["raw"]
    # Bits that only one value leads to a code from cost nothing, even before the prior has learned.
    assert found["entropy_bpp"] / found["raw_bpp"] < 0.995
    codec = Codec.load(tmp_path / "prior")
    frames = picture(20, 30)
    whole = codec.reconstruct(frames)
    for mode in ("raw", "prior"):
        np.testing.assert_array_equal(codec.decode(codec.encode(frames, mode=mode)).frames, whole)
    if kind == "residual":  # decodable from its first stage
        data = codec.encode(frames, bits=codec.bits_of_stages(1))
        few = codec.reconstruct(frames, bits=bits // 2)
        np.testing.assert_array_equal(codec.decode(data).frames, few)
    # A raw file all of whose bits are ones, with checksums as a faulty encoder would write them.
    encode = TileCoder.encode
    monkeypatch.setattr(TileCoder, "encode", lambda *given: np.ones_like(encode(*given)))
    data = codec.encode(frames, mode="raw")
    with pytest.raises(DamagedFile, match="tokens after 0 of 1 frames name no code"):
        codec.decode(data)


@LAYOUTS
def test_masked_language_model(kind, trained, tmp_path):
    _, bits, _ = KINDS[kind]
    config = tiny.get_masked_lm(trained, group_size={"leech": 9, "residual": 3}.get(kind, bits))
    config.optimizer.ema = 0.0
    train_run.train(short(config, kind), tmp_path / "lm")
    generator = Generator.load(tmp_path / "lm")
    # Decoding refuses tokens that name no code.
    samples = generator.sample(6, seed=1)
    assert samples.shape == (6, 16, 16, 3)
    assert samples.dtype == np.uint8


def test_files_of_other_levels_are_refused():
    """With the same parameters and as many codes: only the settings tell them apart."""
    codecs = []
    for levels in ((5, 6), (6, 5)):
        config = tiny.get_config()
        config.quantizer.update(name="fsq", levels=levels)
        config.model.bits = 0
        config = finalize(config)
        pixels = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), np.float32)
        made = jax.eval_shape(make_tokenizer(config).init, jax.random.key(0), pixels)["params"]
        params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), nn.meta.unbox(made))
        codecs.append(Codec(Tokenizer(config, params)))
    data = codecs[0].encode(picture(16, 16))
    assert len(codecs[0].decode(data).frames) == 1
    with pytest.raises(UserError, match="was coded by another model"):
        codecs[1].decode(data)
