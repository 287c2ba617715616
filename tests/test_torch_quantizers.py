"""Checkpoints with a codebook. Oracles: golden arrays of the published code; numpy in float64."""

import copy

import jax
import numpy as np
import pytest
from checkpoint_files import CONFIG, LEECH_PARAMS, VQ_CONFIG, prefixed, tiny_state
from shapes import tokenizer_shape
from torch_writer import save_zip

from bsq_jax import cli
from bsq_jax.core.errors import UserError
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.quantizers import LeechQuantizer
from bsq_jax.quantizers.leech import vectors
from bsq_jax.torch_import.checkpoint_config import read_settings
from bsq_jax.torch_import.tokenizer_layout import from_torch_state
from bsq_jax.training.export import load_export

CODEBOOK = "quantize.embedding.weight"


@pytest.fixture(scope="module")
def state(golden):
    """Of a tokenizer with Leech; it has no codebook."""
    return golden("l24sq_state")


@pytest.fixture(scope="module")
def lattice():
    """The codes in an order that is not ours."""
    order = np.random.default_rng(0).permutation(196_560)
    return np.asarray(vectors(order), np.float32) / np.float32(np.sqrt(32))


@pytest.fixture
def command(capsys):
    """Runs the command in this process: ``(status, standard output, standard error)``."""

    def run(*words):
        return cli.main(["convert", *map(str, words)]), *capsys.readouterr()

    return run


def with_params(config, **params):
    config = copy.deepcopy(config)
    config["model"]["params"].update(params)
    return config


def leech_config():
    """For the weights of the golden state."""
    config = with_params(VQ_CONFIG, **LEECH_PARAMS)
    vit = {"image_size": 32, "width": 64, "layers": 2, "heads": 4}
    config["model"]["params"]["vitconfig"].update(vit)
    config["loss"]["params"]["codebook_weight"] = 0.0
    return config


def vq_state(golden, **changes):
    """Of a tiny tokenizer whose latents differ enough for many of the golden codes."""
    state = tiny_state(channels=8)
    wide = {key: 20 * state[key] for key in ("encoder.conv1.weight", "encoder.ln_post.weight")}
    return state | wide | {CODEBOOK: golden("vq")["vq_plain/codebook"]} | changes


def test_every_stage_with_leech_is_the_published_codes(golden, state):
    arrays = golden("l24sq")
    shape = tokenizer_shape(
        image_height=32, image_width=32, patch_size=8, bits=24, width=64, layers=2, heads=4
    )
    model = TokenizerModel(shape, LeechQuantizer())
    params = from_torch_state(state, shape, model.quantizer)
    pixels = np.moveaxis(arrays["x"], 1, -1)[:, None]

    @jax.jit
    def stages(params, pixels):
        bound = model.bind({"params": params})
        latents = bound.latents(pixels)
        out = model.quantizer.encode(latents)
        return latents, model.quantizer.project(latents), out.quantized, bound(pixels).pixels

    latents, unit, quantized, recon = stages(params, pixels)
    for ours, name in ((latents, "latents"), (unit, "unit")):
        np.testing.assert_allclose(ours.reshape(arrays[name].shape), arrays[name], atol=1e-4)
    clear = arrays["margin"] > 1e-5
    assert clear.all()
    entries = np.rint(quantized.reshape(arrays["quant"].shape) * np.sqrt(32))
    np.testing.assert_array_equal(entries[clear], arrays["quant_times_sqrt32"][clear])
    recon = np.moveaxis(np.clip(recon[:, 0], -1, 1), -1, 1)
    np.testing.assert_allclose(recon, arrays["recon"], atol=1e-4)


def test_a_leech_checkpoint_converts(tmp_path, command, golden, state, lattice):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    saved = prefixed(state | {CODEBOOK: lattice}, "_orig_mod.module.")
    save_zip(path, {"state_dict": saved, "config": leech_config()})
    status, report, errors = command(path, out)
    assert (status, errors) == (0, "")
    rows = [" ".join(line.split()) for line in report.splitlines()]
    assert {"quantizer.name leech embedded config", "model.bits 18 shapes: 196,560 codes"} < {*rows}
    assert "loss of the codebook" not in report
    config, weights, _ = load_export(out)
    assert (config.quantizer.name, config.model.bits) == ("leech", 18)
    assert "quantizer" not in weights["raw"]
    arrays = golden("l24sq")
    tokenizer = Tokenizer.load(out, dtype="float32")
    recon = tokenizer.reconstruct(np.moveaxis(arrays["x"], 1, -1))
    np.testing.assert_allclose(np.moveaxis(recon, -1, 1), arrays["recon"], atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("cosine", [False, True])
def test_a_vq_checkpoint_converts(tmp_path, command, golden, prefix, cosine):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    state = vq_state(golden)
    config = with_params(VQ_CONFIG, l2_norm=cosine)
    save_zip(path, {"state_dict": prefixed(state, prefix), "config": config})
    status, report, errors = command(path, out)
    assert (status, errors) == (0, "")
    assert "note: the loss of the codebook was trained with weight 0.2" in report
    config, weights, _ = load_export(out)
    settings = config.quantizer
    assert (settings.name, settings.codes, settings.channels) == ("vq", 64, 8)
    assert (settings.cosine, settings.commitment_weight) == (cosine, 0.5)
    assert config.model.bits == 6
    np.testing.assert_array_equal(weights["raw"]["quantizer"]["codebook"], state[CODEBOOK])
    if prefix:
        return  # the same weights
    tokenizer = Tokenizer.load(out, dtype="float32")
    pixels = np.random.default_rng(1).uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    latents = tokenizer.model.apply(
        {"params": tokenizer.params}, pixels[:, None], method="latents"
    ).reshape(-1, 8)
    points, codes = np.asarray(latents, np.float64), state[CODEBOOK].astype(np.float64)
    if cosine:
        points, codes = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (points, codes))
    nearest = np.square(points[:, None] - codes).sum(axis=-1).argmin(axis=-1)
    assert len(np.unique(nearest)) > 5
    numbers = tokenizer.encode(pixels).reshape(-1, 6) @ (1 << np.arange(6)[::-1])
    np.testing.assert_array_equal(numbers, nearest)


def value(settings, key):
    """``(value, source)`` of a setting."""
    (found,) = [setting for setting in settings.taken if setting.key == key]
    return found[1:]


def test_without_a_config_a_flag_says_which(golden, state, lattice):
    for flag in ("leech", "bsq"):
        settings = read_settings(state, {}, heads=4, quantizer=flag)
        assert value(settings, "quantizer.name") == (flag, "flag")
        assert value(settings, "model.bits")[0] == {"leech": 18, "bsq": 24}[flag]
    for flag in ("vq", "vq-cosine"):
        settings = read_settings(vq_state(golden), {}, heads=2, quantizer=flag)
        assert value(settings, "quantizer.name") == ("vq", "flag")
        assert value(settings, "quantizer.cosine") == (flag == "vq-cosine", "flag")
    # A codebook of that shape is Leech's if its rows are; a config may say that it was learned.
    full = state | {CODEBOOK: lattice}
    settings = read_settings(full, {}, heads=4)
    assert value(settings, "quantizer.name")[0] == "leech"
    learned = leech_config()
    learned["model"]["params"]["freeze_codebook"] = False
    assert value(read_settings(full, learned), "quantizer.name") == ("vq", "embedded config")
    # Any other number of channels without a codebook is BSQ's.
    settings = read_settings(tiny_state(), {}, heads=2)
    assert value(settings, "quantizer.name") == ("bsq", "published default")
    # The codebook may be left out of a file whose config says that it is Leech's.
    assert value(read_settings(state, leech_config()), "quantizer.name")[0] == "leech"


def test_a_frozen_codebook_of_another_kind_is_noted(golden):
    config = with_params(VQ_CONFIG, predefined_codebook="codes.npy", freeze_codebook=True)
    settings = read_settings(vq_state(golden), config)
    assert value(settings, "quantizer.name")[0] == "vq"
    assert "note: the codebook was frozen" in settings.notes[0]


@pytest.mark.parametrize(
    ("params", "changes", "flag", "words"),
    [
        ({}, {CODEBOOK: np.ones((64, 7))}, None, r"\[64, 7\], but 'quant_embed.weight' gives 8 "),
        ({}, {CODEBOOK: np.ones(64)}, None, r"'quantize.embedding.weight' has the shape \[64\]"),
        ({"n_embed": 63}, {}, None, "has 63 for model.params.n_embed, but shapes say 64"),
        ({"embed_dim": 9}, {}, None, "has 9 for model.params.embed_dim, but shapes say 8"),
        ({"l2_norm": "yes"}, {}, None, "'yes' for model.params.l2_norm"),
        ({"gamma0": 1.0}, {}, None, "model.params.gamma0, a key that the published code does not"),
        ({"logit_laplace": True}, {}, None, "model.params.logit_laplace"),
        ({}, {}, "vq-cosine", "says vq-cosine, but the embedded config has False for .*l2_norm"),
        ({}, {}, "bsq", "--quantizer says bsq, but the checkpoint is of a VITVQModel"),
        ({}, {}, "leech", "64 codes of 8 channels: spherical Leech quantization has 196,560 of 24"),
        ({}, {"quantize.basis": np.ones(8)}, None, "'quantize.basis' and 'quantize.embedding.wei"),
        (None, {}, None, "by distance or by angle .*: give --quantizer vq or --quantizer vq-cos"),
    ],
)
def test_contradictions_are_one_line(golden, params, changes, flag, words):
    config = {} if params is None else with_params(VQ_CONFIG, **params)
    with pytest.raises(UserError, match=words) as error:
        read_settings(vq_state(golden, **changes), config, heads=2, quantizer=flag)
    assert "\n" not in str(error.value)


def test_more_contradictions(golden, state):
    sphere = leech_config()
    sphere["model"]["params"]["l2_norm"] = False
    for arrays, config, words in (
        (state, {}, "24 channels of 'quant_embed.weight' are for: give --quantizer leech or --q"),
        (state, sphere, "does not have True for model.params.l2_norm"),
        (tiny_state(channels=8), VQ_CONFIG, "no 'quantize.embedding.weight'"),
        (golden("vit_tiny_state"), VQ_CONFIG, "has VITVQModel .* of a VITBSQModel"),
        (vq_state(golden), CONFIG, "has VITBSQModel .* of a VITVQModel"),
    ):
        with pytest.raises(UserError, match=words) as error:
            read_settings(arrays, config)
        assert "\n" not in str(error.value)


def test_another_lattice_is_refused(tmp_path, command, state, lattice):
    shape = tokenizer_shape(
        image_height=32, image_width=32, patch_size=8, bits=24, width=64, layers=2, heads=4
    )
    twice, other = lattice.copy(), lattice.copy()
    twice[5], other[7] = twice[3], np.roll(other[7], 1)
    other[9] = 0
    for codebook, words in (
        (twice, "'quantize.embedding.weight': rows 3 and 5 of the codebook are the same code"),
        (other[9:], "has shape .*: that of the Leech quantizer has 196560 codes of 24"),
        (other, "'quantize.embedding.weight': row . of the codebook is no shortest vector"),
    ):
        with pytest.raises(UserError, match=words):
            from_torch_state(state | {CODEBOOK: codebook}, shape, LeechQuantizer())
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, prefixed(state | {CODEBOOK: other}, "module."))
    status, _, errors = command(path, out, "--heads=4")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"error: {path}, state_dict: '{CODEBOOK}': row ")
    assert "--quantizer vq or vq-cosine takes it as a learned one" in errors
    assert not out.exists()


def test_the_flag_of_the_command(tmp_path, command, golden, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, prefixed(state, "module."))
    status, _, errors = command(path, out, "--heads=4")
    assert status == 2
    assert "give --quantizer leech or --quantizer bsq" in errors
    status, _, _ = command(path, out, "--heads=4", "--quantizer=leech")
    assert status == 0
    assert load_export(out)[0].quantizer.name == "leech"
    status, _, errors = command(path, out, "--quantizer=pq")
    assert status == 2
    assert "'pq'" in errors
    save_zip(path, vq_state(golden, **{"quantize.ema_cluster_size": np.ones(64, np.float32)}))
    status, _, errors = command(path, out, "--quantizer=vq")
    assert status == 2
    assert "'quantize.ema_cluster_size': the model has another quantizer than" in errors
