"""Checkpoints of the published code. Oracle: golden outputs of that code, and its arrays."""

import copy
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from checkpoint_files import CONFIG, checkpoint, halved, prefixed, tiny_state, with_time
from torch_writer import Object, save_legacy, save_zip

from bsq_jax import convert as module
from bsq_jax import main
from bsq_jax.api import Tokenizer
from bsq_jax.core.trees import leaves
from bsq_jax.export import load_export
from bsq_jax.models.torch_discriminators import from_torch_discriminator
from bsq_jax.models.torch_layout import from_torch_state

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def state(golden):
    return golden("vit_tiny_state")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process: ``(status, standard output, standard error)``."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        try:
            module.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def omega(value):
    """Settings as OmegaConf pickles them."""
    if isinstance(value, dict):
        content = {key: omega(item) for key, item in value.items()}
        return Object("omegaconf.dictconfig", "DictConfig", (), {"_content": content})
    return Object("omegaconf.nodes", "AnyNode", (), {"_val": value})


def changed(**values):
    """The config with some of its keys, dots written as two underscores, set or taken out."""
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        *groups, leaf = key.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[leaf] = value
    return omega(config)


def row(report, key):
    """``[value, source]`` of a setting in the report."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"{key} ")]
    return line.split(maxsplit=2)[1:]


def reconstruct(folder, golden, **options):
    golden = golden("vit_tiny")
    tokenizer = Tokenizer.load(folder, dtype="float32", **options)
    pixels = np.moveaxis(golden["x"], 1, -1)
    return tokenizer.reconstruct(pixels), np.moveaxis(golden["recon"], 1, -1)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_a_checkpoint_gives_the_published_codes_outputs(tmp_path, command, state, golden, save):
    path, out = tmp_path / "a.pt", tmp_path / "deep" / "out"
    discriminator = golden("stylegan_d_state")
    args = Object("argparse", "Namespace", (), {"use_ema": True})
    save(path, checkpoint(state, config=omega(CONFIG), args=args, discriminator=discriminator))
    status, report, errors = command(path, out)
    assert (status, errors) == (0, "")
    ours, theirs = reconstruct(out, golden)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    config, weights, origin = load_export(out)
    assert origin == {"converted": "a.pt", "step": 1234}
    assert list(weights) == ["raw", "ema", "discriminator"]
    shape = Tokenizer.load(out)._model.shape
    jax.tree.map(
        np.testing.assert_array_equal, weights["raw"], from_torch_state(halved(state), shape)
    )
    kind, sizes, params = from_torch_discriminator(discriminator)
    jax.tree.map(np.testing.assert_array_equal, weights["discriminator"], params)
    assert Tokenizer.load(out).origin == {"converted": "a.pt", "step": 1234, "weights": "ema"}

    assert config.optimizer.learning_rate is None  # follows the batch of the run to come
    assert (config.model.heads, config.model.image_size) == (4, (32, 32))
    assert (config.quantizer.group_size, config.quantizer.inv_temperature) == (9, 2.0)
    assert (config.quantizer.token_weight, config.quantizer.codebook_weight) == (1.0, 0.5)
    assert (config.loss.perceptual, config.loss.adversarial) == (0.3, 0.2)
    assert (config.loss.r1_every, config.loss.entropy_ramp_steps) == (8, 1000)
    assert config.discriminator.name == kind == "stylegan"
    assert config.discriminator.channel_base == sizes["channel_base"]

    assert row(report, "model.heads") == ["4", "embedded config"]
    assert row(report, "model.image_size") == ["32x32", "embedded config"]
    assert row(report, "model.width") == ["64", "shapes"]
    assert row(report, "loss.adversarial") == ["0.2", "embedded config"]
    counts = {name: sum(a.size for a in leaves(tree).values()) for name, tree in weights.items()}
    for name, count in counts.items():
        assert f"\n{name}: {count:,} parameters\n" in report
    assert "\niteration: 1,234\n" in report
    (unused,) = [line for line in report.splitlines() if line.startswith("not used: ")]
    assert unused.startswith("not used: args, optimizer_generator, ")
    for key in ("config.optimizer", "config.model.params.vitconfig.drop_rate", "data.batch_size"):
        assert key in unused
    assert report.endswith(f"export: {out}\n")


def test_without_a_config_the_flags_and_defaults_count(tmp_path, command, state, golden):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, checkpoint(state, ema=False))
    status, report, _ = command(path, out, "--heads", "4")
    assert status == 0
    ours, theirs = reconstruct(out, golden)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert row(report, "model.heads") == ["4", "flag"]
    assert row(report, "model.image_size") == ["32x32", "published default"]
    assert row(report, "quantizer.group_size") == ["9", "shapes"]
    assert "\nema: none\ndiscriminator: none\niteration: 1,234\n" in report
    assert list(load_export(out)[1]) == ["raw"]

    status, report, _ = command(path, out)  # an export may be replaced
    assert status == 0
    assert row(report, "model.heads") == ["1", "published default: 64 channels a head"]
    assert np.abs(reconstruct(out, golden)[0] - theirs).max() > 1e-2


def test_flags_win(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, checkpoint(state, config=omega(CONFIG)))
    status, report, _ = command(path, out, "--heads=2", "--image-size", "16x64")
    assert status == 0
    assert row(report, "model.heads") == ["2", "flag"]
    assert row(report, "model.image_size") == ["16x64", "flag"]
    shape = Tokenizer.load(out)._model.shape
    assert (shape.heads, shape.grid) == (2, (2, 8))


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_a_bare_state_dict(tmp_path, command, state, golden, prefix):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, prefixed(state, prefix))
    status, report, _ = command(path, out, "--heads=4")
    assert status == 0
    assert "iteration: the file does not say" in report
    ours, theirs = reconstruct(out, golden, weights="raw")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_video_model(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = changed(model__params__vitconfig__image_size=[32, 32])
    save_zip(path, checkpoint(with_time(state), config=config))
    status, report, errors = command(path, out)
    assert (status, errors) == (0, "")
    assert row(report, "model.frames") == ["3", "shapes"]
    assert "note: the code that trained this model lets frames see later ones" in report
    assert "\ndiscriminator: none\n" in report
    tokenizer = Tokenizer.load(out, dtype="float32")
    assert tokenizer.encode(np.zeros((1, 3, 32, 32, 3), np.uint8)).shape == (1, 3, 4, 4, 18)


def test_what_their_settings_mean_here(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = changed(
        model__params__persample_entropy_compute="analytical",
        model__params__beta=0.0,
        model__params__zeta=2.0,
        loss__params__disc_reg_freq=0,
        loss__params__disc_loss="hinge",
        loss__params__disc_type="patchgan",
        loss__params__disc_num_layers=2,
    )
    patchgan = {"main.0.weight": np.ones((2, 3, 4, 4), np.float32)}
    save_zip(path, checkpoint(state, config=config, discriminator=patchgan))
    status, report, _ = command(path, out)
    assert status == 0
    config, weights, _ = load_export(out)
    assert config.quantizer.group_size == 1
    assert (config.quantizer.token_weight, config.quantizer.codebook_weight) == (2.0, 1.0)
    assert (config.loss.r1, config.loss.adversarial_kind) == (0.0, "hinge")
    assert (config.discriminator.name, config.discriminator.layers) == ("patchgan", 2)
    assert "docs/differences.md" in row(report, "quantizer.commitment_weight")[1]
    assert "discriminator: left out, its kind is not one that can be converted" in report
    assert "discriminator" not in weights


KEY = "module.encoder.transformer.resblocks.1.mlp.c_fc.bias"
NAMED = KEY.removeprefix("module.")


def missing(saved):
    del saved["state_dict"][KEY]


def renamed(saved):
    saved["state_dict"][KEY.replace("bias", "Bias")] = saved["state_dict"].pop(KEY)


def reshaped(saved):
    saved["state_dict"][KEY] = np.zeros(3, np.float32)


def other(key, array):
    return lambda saved: saved["state_dict"].update({key: array})


def without(key):
    return lambda saved: saved["state_dict"].pop(key)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, f"state_dict: the state dict has no '{NAMED}'"),
        (renamed, f"state_dict: the state dict has no '{NAMED}'"),
        (reshaped, f"state_dict: '{NAMED}' has the shape [3]"),
        (other("module.surprise", np.zeros(1)), "state_dict: the state dict has 'surprise'"),
        (other("surprise", Object("a", "B")), "state_dict has 'surprise', which is no array"),
        (other(KEY, np.full(256, np.nan)), f"'{KEY}' with values that are not finite"),
        (other(NAMED, np.zeros(256)), f"has '{NAMED}' twice, with and without 'module.'"),
        (other("module.quantize.embedding.weight", np.zeros(3)), "another quantiser"),
        (without("module.encoder.conv1.weight"), "has no 'encoder.conv1.weight'"),
        (without("module.quant_embed.weight"), "has no 'quant_embed.weight'"),
        (
            other("module.encoder.conv1.weight", np.zeros((64, 8, 8), np.float32)),
            "'encoder.conv1.weight' has the shape [64, 8, 8]",
        ),
        (
            other("module.encoder.conv1.weight", np.zeros((64, 190), np.float32)),
            "'encoder.conv1.weight' takes 190 numbers: not a square patch",
        ),
        (
            lambda saved: saved["ema_state_dict"].pop(f"module.{KEY}"),
            f"ema_state_dict: the state dict has no '{NAMED}'",
        ),
        (
            lambda saved: saved["state_dict_discriminator"].pop("b4.fc.bias"),
            "state_dict_discriminator: the state dict has no 'b4.fc.bias', which this "
            "discriminator needs (--no-discriminator leaves it out)",
        ),
        (lambda saved: saved.update(config=changed(model__params__embed_dim=36)), "embed_dim"),
        (lambda saved: saved.update(config=changed(model__params__l2_norm=False)), "l2_norm"),
        (
            lambda saved: saved.update(config=changed(data__image_size=64)),
            "64x64 (embedded config) makes 8x8 = 64 patches of 8x8, but "
            "encoder.positional_embedding has 16 places: give --image-size HxW with 16 patches",
        ),
        (
            lambda saved: saved.update(config=changed(loss__params__disc_loss="lsgan")),
            "has 'lsgan' for loss.params.disc_loss, which is none of vanilla, hinge: --no-disc",
        ),
        (lambda saved: saved.update(config=changed(data__zero_mean=False)), "data.zero_mean"),
        (
            lambda saved: saved.update(config=changed(model__params__vitconfig__heads=5)),
            "5 heads (embedded config) do not divide the width 64",
        ),
        (
            lambda saved: saved.update(config=changed(model__params__vitconfig__heads="x")),
            "'x' for model.params.vitconfig.heads",
        ),
        (
            lambda saved: saved.update(config=changed(model__params__vitconfig__layers=3)),
            "has 3 for model.params.vitconfig.layers, but shapes say 2",
        ),
        (
            lambda saved: saved.update(
                config=changed(model__params__dvitconfig={"width": 64, "layers": 4})
            ),
            "encoder and decoder must be alike",
        ),
        (
            lambda saved: saved.update(config=changed(loss__params__disc_type="stylegan3d")),
            "the weights are those of 'stylegan'",
        ),
        (lambda saved: [saved.pop(k) for k in list(saved) if "state_dict" in k], "no checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_export(tmp_path, command, state, golden, damage, words):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    discriminator = golden("stylegan_d_state")
    saved = checkpoint(state, config=omega(CONFIG), discriminator=discriminator)
    damage(saved)
    save_zip(path, saved)
    status, output, errors = command(path, out)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {path}")
    assert words in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_flags_that_cannot_be(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, checkpoint(state))
    for words, message in (
        (("--heads=5",), "5 heads (flag) do not divide the width 64"),
        (
            ("--image-size=32x64",),
            "32x64 (flag) makes 4x8 = 32 patches of 8x8, but encoder.positional_embedding has 16 "
            "places: give --image-size HxW with 16 patches of 8x8",
        ),
        (("--image-size=33",), "33x33 (flag) does not divide into patches of 8x8: give --image"),
        (("--image-size=0x8",), "0x8 (flag) does not divide into patches of 8x8: give --image"),
        (("--image-size=big",), "'big' is not like 256 or 128x256 (height x width)"),
        (("--hedas=4",), "unrecognized arguments: --hedas=4: see --help"),
    ):
        status, _, errors = command(path, out, *words)
        assert status == 2
        assert message in errors
        assert errors.count("\n") == 1
        assert not out.exists()


def test_the_discriminator_may_be_left_out(tmp_path, command, state, golden):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    judge = golden("stylegan_d_state")
    del judge["b4.fc.bias"]
    save_zip(path, checkpoint(state, discriminator=judge))
    status, report, _ = command(path, out, "--no-discriminator")
    assert status == 0
    assert "\ndiscriminator: left out, as --no-discriminator says\n" in report
    assert list(load_export(out)[1]) == ["raw", "ema"]


@pytest.mark.parametrize("kind", ["stylegan-xl", "PatchGAN"])
def test_without_its_weights_a_discriminator_may_be_of_any_kind(
    tmp_path, command, state, golden, kind
):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = changed(
        loss__params__disc_type=kind,
        loss__params__disc_loss="lsgan",
        loss__params__disc_num_layers=2,
    )
    saved = checkpoint(state, config=config, discriminator=golden("stylegan_d_state"))
    save_zip(path, saved)
    assert "has 'lsgan' for loss.params.disc_loss" in command(path, out)[2]
    status, report, _ = command(path, out, "--no-discriminator")
    assert status == 0
    (unused,) = [line for line in report.splitlines() if line.startswith("not used: ")]
    assert "config.loss.params.disc_loss" in unused
    taken = load_export(out)[0].discriminator
    known = kind == "PatchGAN"
    assert (taken.name, taken.layers) == (("patchgan", 2) if known else ("stylegan", 3))
    for key in ("disc_type", "disc_num_layers"):
        assert (f"config.loss.params.{key}" in unused) != known


def test_positions_of_no_square(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    for half in ("encoder", "decoder"):
        state = state | {f"{half}.positional_embedding": np.zeros((15, 64), np.float32)}
    save_zip(path, state)
    assert command(path, out)[2].endswith(
        "encoder.positional_embedding has 15 places, which make no square: "
        "give --image-size HxW with 15 patches of 8x8\n"
    )
    status, report, _ = command(path, out, "--image-size=24x40")
    assert status == 0
    assert row(report, "data.resize") == ["40", "flag (larger side of model.image_size)"]


def test_a_truncated_file_or_a_folder_in_use(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, checkpoint(state))
    out.mkdir()
    (out / "config.json").write_text("{}")
    status, _, errors = command(path, out)
    assert (status, f"{out} holds other files: give a new folder" in errors) == (2, True)
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert command(path, path)[2].endswith("is a file: give a folder for the export\n")
    assert command(path, tmp_path / "export")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()}
    path.write_bytes(path.read_bytes()[:-3000])
    status, _, errors = command(path, tmp_path / "export")
    assert status == 2
    assert f"{path} is damaged or not a file of torch.save" in errors
    assert errors.count("\n") == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()} == before


def test_the_export_can_be_evaluated_and_trained_on(tmp_path, command, capsys):
    path, out, workdir = tmp_path / "a.pt", tmp_path / "out", tmp_path / "run"
    save_zip(path, checkpoint(tiny_state()))
    assert command(path, out, "--heads=2")[0] == 0
    cheap = {
        "name": "tiny",
        "data.source": "synthetic",
        "data.threads": 1,
        "model.dtype": "float32",
        "eval.batch_size": 8,
        "eval.lpips": "false",
        "eval.frechet": "false",
    }
    words = [f"--config.{key}={value}" for key, value in cheap.items()]
    assert main.run(["--mode", "evaluate", "--workdir", str(out), *words]) == 0
    (report,) = out.glob("evaluation*.json")
    described = json.loads(report.read_text())
    assert described["step"] == 1234
    assert set(described["results"]) == {"raw", "ema"}
    assert all(pathlib.Path(picture).is_file() for picture in described["pictures"])
    Tokenizer.load(out)  # is still an export

    words = ["--config", TINY, f"--config.train.init={out}", "--config.train.steps=1"]
    assert main.run([*words, "--workdir", str(workdir)]) == 0
    assert "parameters (raw) and averaged parameters (ema)" in capsys.readouterr().err
    trained = Tokenizer.load(workdir, weights="raw")
    assert trained.origin["step"] == 1
    start = leaves(load_export(out)[1]["raw"])
    rate = trained.config.optimizer.learning_rate
    for name, array in leaves(trained._params).items():
        assert np.abs(array - start[name]).max() <= 1.1 * rate, name
