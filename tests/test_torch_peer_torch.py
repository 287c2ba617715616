"""The network in PyTorch that speed is compared with: it is ours, and does the same work."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_peer  # noqa: E402
from benchmarks.peer import start  # noqa: E402
from benchmarks.torch_tokenizer import TorchTokenizer, visible  # noqa: E402
from benchmarks.torch_training import clip  # noqa: E402
from benchmarks.work import Product, Work, work_of  # noqa: E402
from bsq_jax.config import default_config, finalize  # noqa: E402
from bsq_jax.models.factory import make_tokenizer  # noqa: E402
from bsq_jax.models.patches import patchify  # noqa: E402
from bsq_jax.quantizers import BinarySphericalQuantizer  # noqa: E402
from bsq_jax.training.optimizer import clip_each_parameter  # noqa: E402

pytestmark = pytest.mark.torch
SMALL = Work(2, 16, 24, frames=3, channels=16, layers=2, heads=2, mlp=32, bits=5, head=24)
STEP = dataclasses.replace(SMALL, train=True)


def pixels(work):
    values = np.random.default_rng(0).integers(0, 256, work.pixels, np.uint8)
    return torch.from_numpy(values)


@pytest.mark.parametrize(("frames", "head"), [(1, 3072), (4, 0)])
def test_it_has_as_many_parameters_as_ours(frames, head):
    config = default_config()
    config.model.update(frames=frames, head_hidden=head, image_size=(64, 64), layers=2)
    config = finalize(config)
    work = work_of(config, 1, train=False)
    shapes = jax.eval_shape(make_tokenizer(config).init, jax.random.key(0), jnp.zeros(work.pixels))
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    peer = TorchTokenizer(work)
    assert sum(leaf.numel() for leaf in peer.parameters()) == ours


def test_frames_do_not_see_later_ones():
    torch.manual_seed(0)
    peer, clip = TorchTokenizer(SMALL), pixels(SMALL)
    changed = clip.clone()
    changed[:, 2] = 255 - changed[:, 2]
    with torch.no_grad():
        before, after = (peer(each)[0].view(2, 3, 6, 192) for each in (clip, changed))
        by_frame = peer(clip, by_frame=True)[0].view(2, 3, 6, 192)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-3
    torch.testing.assert_close(before, by_frame, rtol=1e-4, atol=1e-5)
    mask = visible(2, 2)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_patches_and_quantizer_are_ours():
    peer, clip = TorchTokenizer(STEP), pixels(SMALL)
    ours = patchify(np.float32(clip.numpy()) / 127.5 - 1, (8, 8)).reshape(2, -1, 192)
    np.testing.assert_allclose(peer.patches(clip).numpy(), ours, atol=1e-6)
    assert torch.equal(peer.picture(peer.patches(clip)), clip)
    latents = np.float32(np.random.default_rng(1).normal(size=(2, 3, 2, 3, 5)))
    unit = torch.nn.functional.normalize(torch.from_numpy(latents), dim=-1)
    loss = BinarySphericalQuantizer(5, 1, 1.0, 1.0, 1.0, 0.0).encode(jnp.asarray(latents)).loss
    np.testing.assert_allclose(peer.entropy(unit).item(), loss, rtol=1e-5)


def test_gradients_are_clipped_as_ours():
    rng = np.random.default_rng(0)
    given = {"a": rng.normal(size=(5, 4)), "b": 0.01 * rng.normal(size=7), "c": np.zeros(3)}
    given = {name: np.float32(leaf) for name, leaf in given.items()}
    ours, _ = clip_each_parameter(0.5).update(given, ())
    leaves = [torch.from_numpy(leaf.copy()) for leaf in given.values()]
    clip(leaves, dataclasses.replace(SMALL, clip_norm=0.5))
    for leaf, expected in zip(leaves, ours.values(), strict=True):
        np.testing.assert_allclose(leaf.numpy(), expected, rtol=1e-6)
    leaves = [torch.full((4,), 3.0), torch.full((4,), 4.0)]  # of norm 6 and 8: 10 together
    clip(leaves, dataclasses.replace(SMALL, clip="global", clip_norm=5.0))
    assert [leaf.tolist() for leaf in leaves] == [[1.5] * 4, [2.0] * 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_lowers_the_loss(dtype):
    torch.manual_seed(0)
    calls, _ = torch_peer.make_calls(dataclasses.replace(STEP, dtype=dtype))
    losses = [calls["eager"]().item() for _ in range(30)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < losses[0]
    assert calls["by frame"]().isfinite()


def test_it_reconstructs_in_both_precisions():
    for dtype in ("float32", "bfloat16"):
        calls, numbers = torch_peer.make_calls(dataclasses.replace(SMALL, dtype=dtype))
        picture = calls["eager"]()
        assert (picture.shape, picture.dtype) == (SMALL.pixels, torch.uint8)
        assert numbers == sum(leaf.numel() for leaf in TorchTokenizer(SMALL).parameters())


@pytest.mark.parametrize("form", ["ab", "abt", "atb"])
def test_products_have_the_shapes_that_they_say(form):
    assert torch_peer.make_product(Product(form, 3, 2, 4, 5), "bfloat16")().shape == (3, 2, 5)


def test_the_process_works(capfd):
    with start(sys.executable) as peer:
        assert peer.device in ("cpu", "cuda")
        with peer.work(SMALL) as calls:
            assert calls["eager"](calls=2) > 0
            assert calls["by frame"]() > 0
        with pytest.raises(RuntimeError, match="unknown command"):
            peer.ask(do="nothing")
    assert f"beside PyTorch {torch.__version__}" in capfd.readouterr().out
