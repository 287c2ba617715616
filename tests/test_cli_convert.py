"""Checkpoints of the published code. Oracle: golden outputs of that code, and its arrays."""

import copy
import json
import math
import pathlib

import chex
import numpy as np
import pytest
from checkpoint_files import CONFIG, checkpoint, halved, prefixed, tiny_state, with_time
from torch_writer import Object, save_legacy, save_zip

from bsq_jax import cli, main
from bsq_jax.core.trees import leaves
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.torch_import.checkpoint_config import _Reader
from bsq_jax.torch_import.config_keys import Embedded
from bsq_jax.torch_import.discriminators import from_torch_discriminator
from bsq_jax.torch_import.tokenizer_layout import from_torch_state
from bsq_jax.training.export import load_export

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def state(golden):
    return golden("vit_tiny_state")


@pytest.fixture
def command(capsys):
    """Runs the command in this process: ``(status, standard output, standard error)``."""

    def run(*words):
        return cli.main(["convert", *map(str, words)]), *capsys.readouterr()

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
    chex.assert_trees_all_equal(weights["raw"], from_torch_state(halved(state), shape))
    kind, sizes, params = from_torch_discriminator(discriminator)
    chex.assert_trees_all_equal(weights["discriminator"], params)
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


@pytest.mark.parametrize(
    "prefix", ["", "module.", "module.module.", "_orig_mod.module.", "module._orig_mod."]
)
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
    assert row(report, "model.causality") == ["full", "default of the published code: none"]
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


def attended(state, pixels, frames, sees):
    """The published forward pass up to the latents, float64: ``[tokens, L]`` of one clip.

    `sees` is the mask, ``[token, token]``, True where a token sees another.
    """
    state = {key: np.asarray(array, np.float64) for key, array in state.items()}
    width, heads = 64, 4

    def norm(x, key):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * state[f"{key}.weight"] + state[f"{key}.bias"]

    def linear(x, key):
        return x @ state[f"{key}weight"].T + state[f"{key}bias"]

    patches = pixels.reshape(frames, 4, 8, 4, 8, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 192)
    x = patches.astype(np.float64) @ state["encoder.conv1.weight"].T
    x = x + np.tile(state["encoder.positional_embedding"], (frames, 1))
    if frames > 1:
        x = x + np.repeat(state["encoder.temporal_positional_embedding"], 16, 0)
    x = norm(x, "encoder.ln_pre")
    for layer in range(2):
        block = f"encoder.transformer.resblocks.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj_")
        q, k, v = (part.reshape(-1, heads, width // heads) for part in np.split(qkv, 3, -1))
        logits = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width // heads)
        logits = np.where(sees, logits, -np.inf)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", share, v).reshape(-1, width)
        x = x + linear(mixed, f"{block}.attn.out_proj.")
        up = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.")
        up = up * (1 + np.vectorize(math.erf)(up / np.sqrt(2))) / 2
        x = x + linear(up, f"{block}.mlp.c_proj.")
    return linear(norm(x, "encoder.ln_post"), "quant_embed.")


@pytest.mark.parametrize(
    ("mask", "block", "ours"),
    [
        ("none", None, "full"),
        (None, None, "full"),
        ("causal", None, "token_causal"),
        ("Causal", 16, "token_causal"),
        ("block-causal", None, "block_causal"),
        ("block-causal", -1, "block_causal"),
        ("block-causal", 16, "block_causal"),
    ],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_masks_of_attention(tmp_path, command, state, frames, mask, block, ours):
    if (frames, mask) == (1, None):
        ours = "block_causal"  # a frame sees all of itself, whatever the name
    path, out = tmp_path / "a.pt", tmp_path / "out"
    given = {"mask_type": mask, "mask_block_size": block, "num_frames": frames}
    config = copy.deepcopy(CONFIG)
    said = {key: value for key, value in given.items() if value is not None}
    config["model"]["params"]["vitconfig"].update(said)
    if frames > 1:
        state = with_time(state)
    save_zip(path, checkpoint(state, config=omega(config), ema=False))
    status, report, errors = command(path, out)
    assert (status, errors) == (0, "")
    tokenizer = Tokenizer.load(out)
    assert tokenizer.config.model.causality == ours
    assert ("lets frames see later ones, and so" in report) == (frames == 3 and ours == "full")
    assert ("later ones, ours does not" in report) == (frames == 3 and ours == "block_causal")

    pixels = np.random.default_rng(0).uniform(-1, 1, (frames, 32, 32, 3)).astype(np.float32)
    tokens = np.arange(frames * 16)
    before = {"full": 10**6 + 0 * tokens, "token_causal": tokens, "block_causal": tokens // 16}
    place = tokens if ours == "token_causal" else tokens // 16
    expected = attended(state, pixels, frames, place[None] <= before[ours][:, None])
    latents = tokenizer.model.apply(
        {"params": tokenizer.params}, pixels[None], method="latents"
    ).reshape(-1, 18)
    np.testing.assert_allclose(latents, expected, atol=2e-5)
    bits = tokenizer.encode(pixels[None] if frames > 1 else pixels).reshape(-1, 18)
    np.testing.assert_array_equal(bits, expected > 0)


@pytest.mark.parametrize("hidden", [44, 47, 75, 173, 256])
def test_the_hidden_width_is_that_of_the_weights(tmp_path, command, state, hidden):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    rng = np.random.default_rng(0)
    for key in list(state):
        if ".mlp." in key:
            shape = tuple(hidden if n == 256 else n for n in state[key].shape)
            state = state | {key: rng.normal(size=shape).astype(np.float32)}
    save_zip(path, state)
    status, _, errors = command(path, out, "--heads=4")
    assert (status, errors) == (0, "")
    blocks = Tokenizer.load(out).params["encoder"]["trunk"]["transformer"]["blocks"]
    assert blocks["mlp"]["up"]["kernel"].shape == (2, 64, hidden)


def test_every_hidden_width_has_a_ratio():
    for channels in (48, 64, 768, 1920):
        for hidden in range(1, 4 * channels + 1):
            reader = _Reader({}, Embedded({}), [], [])
            reader._mlp_ratio(channels, hidden)
            assert int(channels * reader.taken[0].value) == hidden


def test_their_ratio_may_round_down(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = changed(model__params__vitconfig__mlp_ratio=4.01)  # int(64 * 4.01) is 256
    save_zip(path, checkpoint(state, config=config))
    assert command(path, out)[0] == 0
    assert load_export(out)[0].model.mlp_ratio == 4.01


def test_compiled_models_in_every_set_of_weights(tmp_path, command, state, golden):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    judge = golden("stylegan_d_state")
    saved = {
        "state_dict": prefixed(halved(state), "_orig_mod.module."),
        "ema_state_dict": {
            f"module.module.{key.replace('encoder.', 'encoder._orig_mod.')}": array
            for key, array in state.items()
        },
        "state_dict_discriminator": prefixed(judge, "module._orig_mod."),
        "config": omega(CONFIG),
    }
    save_zip(path, saved)
    status, _, errors = command(path, out)
    assert (status, errors) == (0, "")
    assert list(load_export(out)[1]) == ["raw", "ema", "discriminator"]
    ours, theirs = reconstruct(out, golden)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_their_criterion_does_where_its_config_says_nothing(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = copy.deepcopy(CONFIG)
    config["loss"]["params"] = {"disc_start": 5, "disc_weight": 0.8}
    save_zip(path, checkpoint(state, config=omega(config)))
    status, report, _ = command(path, out)
    assert status == 0
    loss = load_export(out)[0].loss
    # The defaults in the signature of VQLPIPSWithDiscriminator.
    assert (loss.adversarial_kind, loss.adaptive, loss.r1) == ("hinge", True, 0.0)
    assert (loss.entropy, loss.entropy_ramp_start, loss.entropy_ramp_steps) == (1.0, 1.0, 0)
    assert (loss.perceptual, loss.adversarial, loss.adversarial_start) == (1.0, 0.8, 5)
    assert row(report, "loss.adaptive") == ["True", "default of the published code"]


VIT = "model__params__vitconfig__"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{VIT}mask_type", "sliding"),
        (f"{VIT}ls_init_value", 1e-5),
        (f"{VIT}ln_pre", False),
        (f"{VIT}ln_post", False),
        (f"{VIT}act_layer", "quick_gelu"),
        (f"{VIT}norm_layer", "rms_norm"),
        (f"{VIT}num_frames", 4),
        (f"{VIT}qk_norm", True),
        (f"{VIT}patch_size", [8, 4]),
        (f"{VIT}heads", "${model.heads}"),
        (f"{VIT}mlp_ratio", 3),
        ("model__params__l2_norm", False),
        ("model__params__l2_norm", None),
        ("model__params__post_q_l2_norm", None),
        ("model__params__post_q_l2_norm", "yes"),
        ("model__params__logit_laplace", True),
        ("model__params__clamp_range", [0, 1]),
        ("model__params__persample_entropy_compute", "hard"),
        ("model__params__cb_entropy_compute", "hard"),
        ("model__params__n_embed", 512),
        ("model__params__gamma0", "much"),
        ("model__params__dvitconfig", "decoder.yaml"),
        ("model__target", "transcoder.models.bsqvit.VITVQModel"),
    ],
)
def test_a_key_of_another_model_is_refused_by_name(tmp_path, command, state, key, value):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    save_zip(path, checkpoint(state, config=changed(**{key: value})))
    status, _, errors = command(path, out)
    assert status == 2
    assert key.replace("__", ".") in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_keys_that_are_missing_are_refused_by_name(tmp_path, command, state):
    path = tmp_path / "a.pt"
    for key in ("l2_norm", "post_q_l2_norm"):
        config = copy.deepcopy(CONFIG)
        del config["model"]["params"][key]
        save_zip(path, checkpoint(state, config=omega(config)))
        status, _, errors = command(path, tmp_path / "out")
        assert status == 2
        assert f"does not have model.params.{key}, which then is False" in errors


@pytest.mark.parametrize(("mask", "block"), [("block-causal", 8), ("block-causal", 48)])
def test_blocks_other_than_a_frame_are_refused(tmp_path, command, state, mask, block):
    path = tmp_path / "a.pt"
    vit = {f"{VIT}mask_type": mask, f"{VIT}mask_block_size": block}
    save_zip(path, checkpoint(with_time(state), config=changed(**vit)))
    status, _, errors = command(path, tmp_path / "out")
    assert status == 2
    assert "model.params.vitconfig.mask_block_size: this package has blocks of one frame" in errors


def test_the_decoders_own_config(tmp_path, command, state):
    """Keys that only one of the two has count with their defaults; `dim_ffn_output` is shapes'."""
    path, out = tmp_path / "a.pt", tmp_path / "out"
    vit = CONFIG["model"]["params"]["vitconfig"]
    for more, encoder, message in (
        ({}, {}, None),
        ({"use_ffn_output": True, "dim_ffn_output": 3072, "mask_type": "none"}, {}, None),
        ({"dim_ffn_output": 512}, {}, "dvitconfig.dim_ffn_output, but shapes say 3072"),
        ({"use_ffn_output": False}, {}, "dvitconfig.use_ffn_output, but shapes say True"),
        ({}, {"mask_type": "causal"}, "none for model.params.dvitconfig.mask_type and causal for"),
        ({"heads": 2}, {}, "dvitconfig.heads"),
        ({"surprise": 2}, {}, "dvitconfig.surprise"),
    ):
        config = copy.deepcopy(CONFIG)
        config["model"]["params"]["dvitconfig"] = {**vit, **more}
        config["model"]["params"]["vitconfig"].update(encoder)
        save_zip(path, checkpoint(state, config=omega(config)))
        status, _, errors = command(path, out)
        assert status == (0 if message is None else 2), errors
        assert message is None or message in errors


def test_dropout_is_noted(tmp_path, command, state):
    path, out = tmp_path / "a.pt", tmp_path / "out"
    config = changed(model__params__vitconfig__attn_drop_rate=0.1)
    save_zip(path, checkpoint(state, config=config))
    status, report, _ = command(path, out)
    assert status == 0
    assert "note: the model was trained with attn_drop_rate 0.1; this package has no drop" in report


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
        (other("module.quantize.embedding.weight", np.zeros(3)), "of two quantizers"),
        (other("module.quantize.project.weight", np.zeros(3)), "another quantizer"),
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
        (("--hedas=4",), "unknown flag --hedas=4: did you mean --heads?"),
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
