"""Checkpoints that PyTorch and OmegaConf have written. Oracle: the published code's outputs."""

import argparse

import numpy as np
import pytest
from checkpoint_files import CONFIG, checkpoint, with_time

from bsq_jax import cli
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training.export import load_export

torch = pytest.importorskip("torch")
omegaconf = pytest.importorskip("omegaconf")
pytestmark = pytest.mark.torch


def tensors(value):
    """The same with tensors for arrays."""
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("zipped", [True, False])
def test_the_published_layout_converts(tmp_path, golden, capsys, zipped):
    state, wanted = golden("vit_tiny_state"), golden("vit_tiny")
    discriminator = golden("stylegan_d_state")
    saved = tensors(checkpoint(state, discriminator=discriminator))
    saved["config"] = omegaconf.OmegaConf.create(CONFIG)
    saved["args"] = argparse.Namespace(use_ema=True, ema_decay=0.999)
    parameter = torch.nn.Parameter(saved["state_dict"]["module.encoder.positional_embedding"])
    saved["optimizer_generator"] = torch.optim.AdamW([parameter], 1e-4).state_dict()
    path, out = tmp_path / "a.pt", tmp_path / "out"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert cli.main(["convert", str(path), str(out)]) == 0
    assert "discriminator: " in capsys.readouterr().out
    tokenizer = Tokenizer.load(out, dtype="float32")
    assert tokenizer.config.model.heads == 4
    ours = tokenizer.reconstruct(np.moveaxis(wanted["x"], 1, -1))
    np.testing.assert_allclose(ours, np.moveaxis(wanted["recon"], 1, -1), atol=1e-4)
    assert list(load_export(out)[1]) == ["raw", "ema", "discriminator"]


def test_half_precision_and_clips(tmp_path, golden):
    state = tensors(with_time(golden("vit_tiny_state")))
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(half, tmp_path / "a.pt")
    words = [str(tmp_path / name) for name in ("a.pt", "out")]
    assert cli.main(["convert", *words, "--heads", "4"]) == 0
    config, weights, _ = load_export(tmp_path / "out")
    assert config.model.frames == 3
    kernel = weights["raw"]["encoder"]["patch_embed"]["kernel"]
    wanted = half["encoder.conv1.weight"].float().numpy().T
    np.testing.assert_array_equal(kernel, wanted)
