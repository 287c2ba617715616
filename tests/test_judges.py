"""Frozen networks over a whole split. Oracle: all pictures at once, distances by another formula.

The networks themselves are tested elsewhere; the two large ones are stood in for by a few lines.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.evaluation import feature_networks as module
from bsq_jax.evaluation.judges import Judges, Judging
from bsq_jax.evaluation.metrics import patch_mean, precision_recall
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips, vgg_pooled

DEVICES = 8

COUNT = 11


def clips(frames=2, side=32, count=COUNT, seed=0):
    """Originals and reconstructions, uint8 ``[count, frames, side, side, 3]``; one is broken."""
    rng = np.random.default_rng(seed)
    original = rng.integers(0, 256, (count, frames, side // 8, side // 8, 3)).repeat(8, 2)
    original = original.repeat(8, 3)
    noisy = np.clip(original + rng.normal(0, 40, original.shape), 0, 255)
    return original.astype(np.uint8), noisy.astype(np.uint8)


def one_pass(judges, mesh, batch, original, reconstruction, broken=(), frames=None):
    """A pass over a split in padded batches; the means of what each frame has, and the rest."""
    seen, values, kinds = judges.begin(), {}, []
    frames = np.full(len(original), original.shape[1]) if frames is None else frames
    for start in range(0, len(original), batch):
        index = np.arange(start, start + batch)
        index = np.where(index < len(original), index, -1)
        mask = np.array([i >= 0 and i not in broken for i in index], np.float32)
        # What a masked row or frame holds must not matter.
        real = (np.arange(original.shape[1]) < frames[index][:, None]) & (mask[:, None] > 0)
        pixels, output = (
            np.where(real[:, :, None, None, None], x[index], 77).astype(np.uint8)
            for x in (original, reconstruction)
        )
        placed = to_global({"a": pixels, "b": output}, mesh)
        shown = jax.device_get(judges.look(placed["a"], placed["b"]))
        for name, each in shown["values"].items():
            values.setdefault(name, []).extend(each[real])
        seen.update(
            shown, {"pixels": pixels, "frames": frames[index], "mask": mask, "index": index}
        )
        kinds.append(set(shown))
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return means | judges.result(seen), kinds


def distance(a, b):
    """Frechet distance from the samples alone, exact however few they are.

    The trace of the root is the sum of the singular values of ``A B^T``, A and B being the centred
    samples, over the root of the degrees of freedom.
    """
    a, b = (np.float64(x).reshape(-1, x.shape[-1]) for x in (a, b))
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    spread = sum(np.sum(x**2) for x in centred)
    return np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + spread - 2 * root


def test_all_frames_count_once():
    mesh = make_mesh()
    original, other = clips()
    frames = np.full(COUNT, 2)
    frames[[1, 7]] = 1
    judging = Judging(lpips=True, frechet=True, neighbours=2, neighbours_examples=12)
    judges = Judges(judging, mesh, clip=(2, 32, 32), patch=8, examples=COUNT)
    result, _ = one_pass(judges, mesh, 8, original, other, broken=(3,), frames=frames)

    pairs = [(i, j) for i in range(COUNT) for j in range(frames[i]) if i != 3]
    assert len(pairs) == 18
    rows = tuple(np.transpose(pairs))
    a, b = (to_float(jnp.asarray(x[rows]))[:, None] for x in (original, other))
    oracle = to_float(jnp.round(patch_mean(original[rows][:, None], 8)))
    alex, vgg = load_lpips("alexnet"), load_lpips("vgg16")
    run = jax.jit(functools.partial(lpips, net="alexnet"))
    np.testing.assert_allclose(result["lpips"], np.mean(run(alex, a, b)), rtol=1e-4)
    np.testing.assert_allclose(result["oracle_lpips"], np.mean(run(alex, a, oracle)), atol=1e-6)
    seen, made = (np.asarray(jax.jit(vgg_pooled)(vgg, pixels))[:, 0] for pixels in (a, b))
    np.testing.assert_allclose(result["frechet_vgg16"], distance(seen, made), rtol=1e-3)
    # Of 11 examples 6 with 2 frames each: evenly spaced, and the broken one is not made up for.
    chosen = [i for i in range(COUNT) if (i + 1) * 6 // COUNT > i * 6 // COUNT]
    assert len(chosen) == 6
    assert {1, 3, 7} < set(chosen)
    kept = [number for number, (i, _) in enumerate(pairs) if i in chosen]
    assert (result["precision"], result["recall"]) == precision_recall(seen[kept], made[kept], k=2)
    notes = "\n".join(judges.notes())
    assert "FID: no weights (get pt_inception-2015-12-05-6726825d.pth from github.com" in notes
    assert "precision and recall: k=2, VGG16 features of 8 frames" in notes
    assert "VGG16 18 frames in 512 dimensions" in notes
    assert "FVD needs clips of at least 9 frames" in notes
    assert judges.about()["frechet_vgg16"]["samples"] == 18


def moments_of_colour(pixels, dimension):
    """Stands in for a network: means of powers of the pixels, ``[batch, time, dimension]``."""
    powers = pixels[..., None] ** jnp.arange(1, dimension + 1).reshape((1,) * 5 + (-1,))
    return jnp.mean(powers, axis=(2, 3, 4))


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Small features and 5 classes for Inception-v3, and small ones for I3D; a file of weights."""
    inception, i3d = module.inception_v3, module.i3d

    def small_inception(params, pixels):
        features = moments_of_colour(pixels, 3)
        return inception.Inception(features, features @ params["head"])

    def small_i3d(params, pixels):
        return jnp.mean(moments_of_colour(pixels, 2), axis=1) * params["scale"]

    head = np.random.default_rng(0).normal(0, 9, (3, 5)).astype(np.float32)
    monkeypatch.setattr(inception, "CLASSES", 5)
    monkeypatch.setattr(inception, "load_inception", lambda path: {"head": head})
    monkeypatch.setattr(inception, "inception", small_inception)
    monkeypatch.setattr(i3d, "load_i3d", lambda: {"scale": np.float32(10)})
    monkeypatch.setattr(i3d, "i3d_logits", small_i3d)
    small = {"inception": 3, "i3d": 2}
    spaces = {
        name: module.dataclasses.replace(space, dimension=small[name])
        for name, space in module.SPACES.items()
        if name in small
    }
    monkeypatch.setattr(module, "SPACES", spaces)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    return path, head


@pytest.mark.parametrize(("devices", "batch"), [(8, 8), (4, 16), (1, 5), (1, 11)])
def test_inception_and_fvd_on_any_mesh(stand_ins, devices, batch):
    path, head = stand_ins
    mesh = make_mesh(devices=jax.devices()[:devices])
    frames = module.i3d.MIN_FRAMES
    # Too small for VGG16, so that the two stand-ins are all there is.
    original, other = (x[:, :, ::4, ::4] for x in clips(frames))
    judging = Judging(frechet=True, inception=str(path), neighbours=3)
    judges = Judges(judging, mesh, clip=(frames, 8, 8), patch=4, examples=COUNT)
    result, kinds = one_pass(judges, mesh, batch, original, other)

    a, b = (moments_of_colour(to_float(jnp.asarray(x)), 3) for x in (original, other))
    np.testing.assert_allclose(result["fid"], distance(a, b), rtol=1e-4)
    p = np.asarray(jax.nn.softmax(b @ head), np.float64).reshape(-1, 5)
    score = np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))
    np.testing.assert_allclose(result["inception_score"], score, rtol=1e-4)
    a, b = (10 * np.mean(np.asarray(x)[..., :2], axis=1) for x in (a, b))
    np.testing.assert_allclose(result["fvd"], distance(a, b), rtol=1e-3)
    assert 0 <= result["precision"] <= 1
    about = judges.about()
    checksum = hashlib.sha256(b"weights").hexdigest()
    assert about["fid"]["weights"] == f"weights.pth, sha256 {checksum}"
    assert about["fid"]["samples"] == COUNT * frames
    assert about["fvd"]["samples"] == COUNT
    assert about["neighbours"]["features"] == "Inception-v3"
    assert about["inception_score"]["of_originals"] > 1

    # Originals are looked at in the first pass alone, and serve the second as well.
    assert kinds == [{"values", "reconstructions", "originals"}] * -(-COUNT // batch)
    again, kinds = one_pass(judges, mesh, batch, original, other)
    assert kinds == [{"values", "reconstructions"}] * -(-COUNT // batch)
    assert again == result
    better, _ = one_pass(judges, mesh, batch, original, original)
    assert better["fid"] < 1e-6
    assert better["precision"] == better["recall"] == 1


def test_fvd_is_of_whole_clips(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:2])
    time = module.i3d.MIN_FRAMES
    original, other = (x[:, :, ::4, ::4] for x in clips(time))
    frames = np.full(COUNT, time)
    frames[[0, 4]] = time - 1, 1
    judges = Judges(
        Judging(frechet=True, inception=str(path)), mesh, clip=(time, 8, 8), patch=4, examples=COUNT
    )
    result, _ = one_pass(judges, mesh, 6, original, other, broken=(3,), frames=frames)
    whole = [i for i in range(COUNT) if i not in (0, 3, 4)]
    a, b = (moments_of_colour(to_float(jnp.asarray(x[whole])), 2) for x in (original, other))
    wanted = distance(*(10 * np.mean(np.asarray(x), axis=1) for x in (a, b)))
    np.testing.assert_allclose(result["fvd"], wanted, rtol=1e-3)
    assert judges.about()["fvd"]["samples"] == len(whole)
    assert judges.about()["fid"]["samples"] == len(whole) * time + time
    assert "FVD: 2 clips that are too short are left out" in judges.notes()


def test_a_broken_off_pass_leaves_nothing(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh()
    original, other = (x[:, :, ::4, ::4] for x in clips(1))
    judges = Judges(Judging(inception=str(path)), mesh, clip=(1, 8, 8), patch=4, examples=COUNT)
    seen = judges.begin()
    placed = to_global({"a": original[:8], "b": other[:8]}, mesh)
    shown = jax.device_get(judges.look(placed["a"], placed["b"]))
    batch = {"pixels": original[:8], "frames": np.ones(8, int), "mask": np.ones(8)}
    seen.update(shown, batch | {"index": np.arange(8)})
    one_pass(judges, mesh, 8, original, other)
    assert judges.about()["fid"]["samples"] == COUNT


def test_too_few_samples_are_told(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:1])
    original, other = (x[:1, :, ::4, ::4] for x in clips(1))
    judging = Judging(inception=str(path), neighbours=3)
    judges = Judges(judging, mesh, clip=(1, 8, 8), patch=4, examples=1)
    result, _ = one_pass(judges, mesh, 1, original, other)
    assert set(result) == {"inception_score"}
    notes = "\n".join(judges.notes())
    assert "FID needs at least 2 frames" in notes
    assert "features of 1 frames, which are too few" in notes


def test_what_cannot_be_measured_is_told(tmp_path):
    mesh = make_mesh()
    judging = Judging(lpips=True, frechet=True, neighbours=3)
    judges = Judges(judging, mesh, clip=(1, 8, 8), patch=4, examples=1)
    assert judges.about() == {}
    notes = judges.notes()
    assert "LPIPS needs pictures of at least 31 pixels a side" in notes
    assert "VGG16 features need pictures of at least 16 pixels a side" in notes
    assert Judges(Judging(), mesh, clip=(1, 8, 8), patch=4, examples=1).notes() == []
    missing = Judging(inception=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"none\.pth") as error:
        Judges(missing, mesh, clip=(1, 8, 8), patch=4, examples=1)
    assert "\n" not in str(error.value)


def test_an_evaluation_of_nothing_has_no_inception_score(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:1])
    judges = Judges(Judging(inception=str(path)), mesh, clip=(1, 8, 8), patch=4, examples=1)
    assert judges.result(judges.begin()) == {}
    about = judges.about()["inception_score"]
    assert about["splits"] == 1
    assert "of_originals" not in about
    assert "Inception score needs at least 1 frame" in judges.notes()
