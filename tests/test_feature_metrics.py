"""Frozen networks over a whole split. Oracle: all pictures at once, distances by another formula.

The networks themselves are tested elsewhere; the two large ones are stood in for by a few lines.
"""

import dataclasses
import functools
import hashlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.evaluation import frozen_networks, tokenizer_table
from bsq_jax.evaluation.feature_metrics import FeatureMetrics
from bsq_jax.evaluation.frame_metrics import FrameMetrics
from bsq_jax.evaluation.loop import HostBatch
from bsq_jax.evaluation.metric import FrameMetric, NetworkSettings, Row
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


class Comparison:
    """Compares sets of reconstructions with the same originals, in padded batches.

    Attributes:
      metrics: the metrics of features.
      means: per frame.
    """

    def __init__(self, settings, mesh, clip, batch, patch=4):
        self.metrics = FeatureMetrics(settings, mesh, clip=clip)
        self.frames = FrameMetrics(settings, mesh, clip=clip, patch=patch)
        self._mesh, self._batch = mesh, batch

    def statistics(self, pixels, broken=(), frames=None):
        """Of a split; what a masked row or frame holds must not matter."""
        found = self.metrics.new_statistics(len(pixels))
        for batch in self._batches(broken, frames, pixels):
            found.update(batch.values["features"], batch.real, batch.index)
        return found

    def means(self, original, other, broken=(), frames=None):
        """Of the frame metrics."""
        means = self.frames.new_means(clips=original.shape[1] > 1)
        for batch in self._batches(broken, frames, original, other):
            means.update(batch)
        return means.result()

    def _batches(self, broken, frames, *sets):
        count, time = sets[0].shape[:2]
        frames = np.full(count, time) if frames is None else frames
        for start in range(0, count, self._batch):
            index = np.arange(start, start + self._batch)
            index = np.where(index < count, index, -1)
            counted = np.array([i >= 0 and i not in broken for i in index])
            real = (np.arange(time) < frames[index][:, None]) & counted[:, None]
            shown = real[:, :, None, None, None]
            placed = [
                to_global({"x": np.where(shown, x[index], 77).astype(np.uint8)}, self._mesh)["x"]
                for x in sets
            ]
            if len(sets) == 1:
                values = {"features": self.metrics.features(*placed)}
            else:
                values = {"metrics": self.frames(*placed)}
            yield HostBatch(jax.device_get(values), counted, frames[index], real, index)


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
    settings = NetworkSettings(lpips=True, frechet=True, neighbours=2, neighbours_examples=12)
    comparison = Comparison(settings, mesh, (2, 32, 32), 8, patch=8)
    real, fake = (comparison.statistics(x, (3,), frames) for x in (original, other))
    result = comparison.metrics.compare(real, fake)
    means = comparison.means(original, other, (3,), frames)

    pairs = [(i, j) for i in range(COUNT) for j in range(frames[i]) if i != 3]
    assert len(pairs) == 18
    rows = tuple(np.transpose(pairs))
    a, b = (to_float(jnp.asarray(x[rows]))[:, None] for x in (original, other))
    oracle = to_float(jnp.round(patch_mean(original[rows][:, None], 8)))
    alex, vgg = load_lpips("alexnet"), load_lpips("vgg16")
    run = jax.jit(functools.partial(lpips, net="alexnet"))
    # The mean over clips of the mean over their frames.
    weights = np.array([1 / frames[i] for i, _ in pairs])
    for name, pixels in (("lpips", b), ("oracle_lpips", oracle)):
        wanted = np.average(run(alex, a, pixels), weights=weights)
        np.testing.assert_allclose(means[name], wanted, rtol=1e-4, atol=1e-6)
    seen, made = (np.asarray(jax.jit(vgg_pooled)(vgg, pixels))[:, 0] for pixels in (a, b))
    np.testing.assert_allclose(result["frechet_vgg16"], distance(seen, made), rtol=1e-3)
    # Of 11 examples 6 with 2 frames each: evenly spaced, and the broken one is not made up for.
    chosen = [i for i in range(COUNT) if (i + 1) * 6 // COUNT > i * 6 // COUNT]
    assert len(chosen) == 6
    assert {1, 3, 7} < set(chosen)
    kept = [number for number, (i, _) in enumerate(pairs) if i in chosen]
    assert (result["precision"], result["recall"]) == precision_recall(seen[kept], made[kept], k=2)
    notes = {note.metric: note.text for note in comparison.metrics.notes(real)}
    assert set(notes) == {"fid", "fvd", "frechet_vgg16", "precision"}
    assert "pt_inception-2015-12-05-6726825d.pth from github.com" in notes["fid"]
    assert "k=2, VGG16 features of 8 frames" in notes["precision"]
    assert "18 frames in 512 dimensions" in notes["frechet_vgg16"]
    assert "at least 9 frames" in notes["fvd"]
    assert comparison.metrics.record(real)["frechet_vgg16"]["samples"] == 18
    assert comparison.frames.record["lpips"]["features"] == "AlexNet"


def moments_of_colour(pixels, dimension):
    """Stands in for a network: means of powers of the pixels, ``[batch, time, dimension]``."""
    powers = pixels[..., None] ** jnp.arange(1, dimension + 1).reshape((1,) * 5 + (-1,))
    return jnp.mean(powers, axis=(2, 3, 4))


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Small features and 5 classes for Inception-v3, and small ones for I3D; a file of weights."""
    inception, i3d = frozen_networks.inception_v3, frozen_networks.i3d

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
    for name, dimension in small.items():
        network = dataclasses.replace(frozen_networks.NETWORKS[name], dimension=dimension)
        monkeypatch.setitem(frozen_networks.NETWORKS, name, network)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    return path, head


@pytest.mark.parametrize(("devices", "batch"), [(8, 8), (4, 16), (1, 5), (1, 11)])
def test_inception_and_fvd_on_any_mesh(stand_ins, devices, batch):
    path, head = stand_ins
    mesh = make_mesh(devices=jax.devices()[:devices])
    frames = frozen_networks.i3d.MIN_FRAMES
    # Too small for VGG16, so that the two stand-ins are all there is.
    original, other = (x[:, :, ::4, ::4] for x in clips(frames))
    settings = NetworkSettings(frechet=True, inception=str(path), neighbours=3)
    comparison = Comparison(settings, mesh, (frames, 8, 8), batch)
    real, fake = comparison.statistics(original), comparison.statistics(other)
    result = comparison.metrics.compare(real, fake)

    a, b = (moments_of_colour(to_float(jnp.asarray(x)), 3) for x in (original, other))
    np.testing.assert_allclose(result["fid"], distance(a, b), rtol=1e-4)
    p = np.asarray(jax.nn.softmax(b @ head), np.float64).reshape(-1, 5)
    score = np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))
    np.testing.assert_allclose(result["inception_score"], score, rtol=1e-4)
    a, b = (10 * np.mean(np.asarray(x)[..., :2], axis=1) for x in (a, b))
    np.testing.assert_allclose(result["fvd"], distance(a, b), rtol=1e-3)
    assert 0 <= result["precision"] <= 1
    about = comparison.metrics.record(real)
    checksum = hashlib.sha256(b"weights").hexdigest()
    assert about["fid"]["weights"] == f"weights.pth, sha256 {checksum}"
    assert about["fid"]["samples"] == COUNT * frames
    assert about["fvd"]["samples"] == COUNT
    assert about["neighbours"]["features"] == "Inception-v3"
    assert about["inception_score"]["of_originals"] > 1

    better = comparison.metrics.compare(real, comparison.statistics(original))
    assert better["fid"] < 1e-6
    assert better["precision"] == better["recall"] == 1


def test_fvd_is_of_whole_clips(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:2])
    time = frozen_networks.i3d.MIN_FRAMES
    original, other = (x[:, :, ::4, ::4] for x in clips(time))
    frames = np.full(COUNT, time)
    frames[[0, 4]] = time - 1, 1
    settings = NetworkSettings(frechet=True, inception=str(path))
    comparison = Comparison(settings, mesh, (time, 8, 8), 6)
    real, fake = (comparison.statistics(x, (3,), frames) for x in (original, other))
    result = comparison.metrics.compare(real, fake)
    whole = [i for i in range(COUNT) if i not in (0, 3, 4)]
    a, b = (moments_of_colour(to_float(jnp.asarray(x[whole])), 2) for x in (original, other))
    wanted = distance(*(10 * np.mean(np.asarray(x), axis=1) for x in (a, b)))
    np.testing.assert_allclose(result["fvd"], wanted, rtol=1e-3)
    record = comparison.metrics.record(real)
    assert record["fvd"]["samples"] == len(whole)
    assert record["fid"]["samples"] == len(whole) * time + time
    notes = [note.text for note in comparison.metrics.notes(real, 2) if note.metric == "fvd"]
    assert any("2 clips" in text for text in notes)


def test_too_few_samples_are_told(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:1])
    original, other = (x[:1, :, ::4, ::4] for x in clips(1))
    settings = NetworkSettings(inception=str(path), neighbours=3)
    comparison = Comparison(settings, mesh, (1, 8, 8), 1)
    real, fake = comparison.statistics(original), comparison.statistics(other)
    assert set(comparison.metrics.compare(real, fake)) == {"inception_score"}
    notes = {note.metric: note.text for note in comparison.metrics.notes(real)}
    assert "at least 2 frames" in notes["fid"]
    assert notes["precision"].endswith("features of 1 frames, which are too few")
    more = np.zeros((5, *original.shape[1:]), np.uint8)
    notes = {
        note.metric: note.text for note in comparison.metrics.notes(comparison.statistics(more))
    }
    assert notes["precision"].endswith("of 5 frames, which are too few to say anything")


def test_what_cannot_be_measured_is_told(tmp_path):
    mesh = make_mesh()
    settings = NetworkSettings(lpips=True, frechet=True, neighbours=3)
    comparison = Comparison(settings, mesh, (1, 8, 8), 1)
    assert comparison.metrics.record(comparison.metrics.new_statistics(1)) == {}
    notes = {note.metric: note.text for note in comparison.metrics.notes()}
    assert set(notes) == {"fid", "frechet_vgg16"}
    assert "at least 16 pixels" in notes["frechet_vgg16"]
    notes = {note.metric: note.text for note in comparison.frames.notes}
    assert set(notes) == {"ssim", "ms_ssim", "lpips"}
    assert "at least 31 pixels" in notes["lpips"]
    assert FeatureMetrics(NetworkSettings(), mesh, clip=(1, 8, 8)).notes() == []
    missing = NetworkSettings(inception=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"none\.pth") as error:
        FeatureMetrics(missing, mesh, clip=(1, 8, 8))
    assert "\n" not in str(error.value)


def test_no_examples_have_no_inception_score(stand_ins):
    path, _ = stand_ins
    mesh = make_mesh(devices=jax.devices()[:1])
    features = FeatureMetrics(NetworkSettings(inception=str(path)), mesh, clip=(1, 8, 8))
    nothing = features.new_statistics(1)
    assert features.compare(nothing, nothing) == {}
    record = features.record(nothing)["inception_score"]
    assert record["splits"] == 1
    assert "of_originals" not in record
    assert "inception_score" in {note.metric for note in features.notes(nothing)}


def test_a_metric_of_the_list_is_measured(monkeypatch):
    """One entry is enough for its values, those of the oracle, and its line in the table."""

    def mean_error(original, other):
        return jnp.mean(jnp.abs(to_float(original) - to_float(other)), axis=(2, 3, 4))

    row = Row("mae", "mean absolute error", "{:.3f}")
    metric = FrameMetric(row, "MAE", mean_error, min_side=2, oracle=True)
    mesh = make_mesh(devices=jax.devices()[:2])
    original, other = clips(3)
    frames = FrameMetrics(NetworkSettings(), mesh, clip=(3, 32, 32), patch=8, metrics=[metric])
    placed = to_global({"a": original[:4], "b": other[:4]}, mesh)
    found = frames(placed["a"], placed["b"])
    chex.assert_shape(list(found.values()), (4, 3))
    wanted = np.abs(original[:4].astype(float) - other[:4]).mean(axis=(2, 3, 4)) / 127.5
    chex.assert_trees_all_close(found, {"mae": wanted, "oracle_mae": 0 * wanted}, atol=1e-5)
    monkeypatch.setattr(tokenizer_table, "FRAME_METRICS", (metric,))
    assert tokenizer_table.tokenizer_rows()[0] == row
