"""Evaluation of a whole split.

Oracle: float64 numpy and scikit-image over the same pictures, and over clips decoded by hand.
"""

import errno
import functools
import json
import pathlib
import tempfile

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.factory import make_data_config
from bsq_jax.evaluation import tokenizer as module
from bsq_jax.evaluation.metric import NetworkSettings
from bsq_jax.evaluation.metrics import Moments, frechet_distance, precision_recall
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips, vgg_pooled
from bsq_jax.evaluation.report import Wanted, evaluate, weight_sets
from bsq_jax.evaluation.tokenizer import TokenizerEvaluator
from bsq_jax.evaluation.tokenizer_table import tokenizer_table
from bsq_jax.media.videos import write_mp4
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

DEVICES = 8

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
COUNT = 11


def smooth_picture(rng, height, width):
    """A few soft blobs of colour: structure that SSIM can see, and all values of a byte."""
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6))
             for _ in range(3)]  # fmt: skip
    return np.rint(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven readable pictures of two by three crops, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(smooth_picture(rng, 32, 48)).save(folder / f"{number:02d}.png")
    (folder / "05b.png").write_bytes(b"no picture at all")
    return folder


def setup(folder, crop, size=16, **changes):
    config = load_config_file(TINY)
    config.model.image_size = (size, size)
    config.data.update(val_source=f"folder:{folder}")
    config.data.update(eval_crop=crop, resize=size, eval_resize=32, max_broken=0.1, **changes)
    config = finalize(config)
    return make_tokenizer_task(config), make_data_config(config)


def crops_of(folder, crop):
    """All evaluation crops ``[example, 16, 16, 3]`` in order, cut by hand."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9].png")):
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        if crop == "center":
            found.append(pixels[8:24, 16:32])
        else:
            found += [pixels[i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16, 32)]
    return np.stack(found)


def psnr(original, other):
    return np.mean(
        [
            peak_signal_noise_ratio(a, b, data_range=255)
            for a, b in zip(original, other, strict=True)
        ]
    )


def ssim(original, other):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.mean(
        [
            structural_similarity(
                *(x.astype(np.float64) for x in pair), channel_axis=-1, data_range=255, **options
            )
            for pair in zip(original, other, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("crop", "devices", "batch", "rounded"),
    [("center", 8, 5, 8), ("center", 1, 5, 5), ("tiles", 8, 16, 16)],
)
def test_means_are_those_of_all_pictures(folder, tmp_path, crop, devices, batch, rounded):
    mesh = make_mesh(devices=jax.devices()[:devices])
    task, data = setup(folder, crop)
    state = task.init_state(mesh)
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=batch)
    assert evaluator.loop.batch_size == rounded
    report = evaluate(
        evaluator, weight_sets(state.params, None), tmp_path, name="x", step=3, wanted=Wanted(8)
    )

    originals = crops_of(folder, crop)
    floats = (originals.astype(np.float32) / 127.5 - 1)[:, None]
    output = jax.jit(task.reconstruct)(jax.device_get(state.params), floats)
    clamped = np.clip(np.asarray(output.pixels[:, 0], np.float64), -1, 1)
    reconstructions = np.rint((clamped + 1) * 127.5).astype(np.uint8)
    patches = originals.reshape(-1, 2, 8, 2, 8, 3).astype(np.float64)
    means = np.rint(patches.mean(axis=(2, 4), keepdims=True))
    oracle = np.broadcast_to(means, patches.shape).reshape(originals.shape).astype(np.uint8)
    bits = np.asarray(output.quantized.bits).reshape(-1, 6)

    assert list(report["results"]) == ["raw"]
    result = report["results"]["raw"]
    assert result["count"] == len(originals) == (COUNT if crop == "center" else 6 * COUNT)
    np.testing.assert_allclose(result["psnr"], psnr(originals, reconstructions), rtol=1e-4)
    np.testing.assert_allclose(result["ssim"], ssim(originals, reconstructions), atol=1e-4)
    np.testing.assert_allclose(report["oracle"]["psnr"], psnr(originals, oracle), rtol=1e-5)
    assert result["tokens"] == len(bits)
    assert result["codes_used"] == len(np.unique(bits, axis=0))
    ones = bits.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(ones * np.log2(ones)) - np.nan_to_num(
            (1 - ones) * np.log2(1 - ones)
        )
    np.testing.assert_allclose(result["bit_entropy"], entropy.mean(), rtol=1e-5)

    assert len(report["measured"]["unreadable"]) == 1
    assert "05b.png" in report["measured"]["unreadable"][0]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert "05b.png" in tokenizer_table(report)
    assert "MS-SSIM needs pictures of at least 161 pixels a side" in report["notes"]
    assert "per_frame" not in result
    assert [pathlib.Path(path).name[:-12] for path in report["pictures"]] == [
        "crops",
        "photographs",
    ]
    assert report["videos"] == []
    for path in report["pictures"]:
        Image.open(path).verify()


def test_the_same_pictures_are_shown_in_order(folder, tmp_path, monkeypatch):
    mesh = make_mesh()
    task, data = setup(folder, "tiles")
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=16)
    shown = []
    show = module.comparison_pictures.examples_picture
    monkeypatch.setattr(
        module.comparison_pictures,
        "examples_picture",
        lambda examples, patch: shown.append(examples) or show(examples, patch),
    )
    weights = {"raw": task.init_state(mesh).params}
    evaluate(evaluator, weights, tmp_path, name="x", step=0, wanted=Wanted(20))
    (shown,) = shown
    np.testing.assert_array_equal(shown.originals[:, 0], crops_of(folder, "tiles")[:20])
    assert shown.reconstructions.shape == shown.originals.shape
    assert shown.reconstructions.dtype == np.uint8


def test_the_picture_of_photographs_shows_the_middle_of_a_strip(tmp_path, monkeypatch):
    """All of it would be 32 x 96,000 pixels in each of three rows."""
    strip = np.random.default_rng(0).integers(0, 256, (1, 3_000, 3), np.uint8)
    Image.fromarray(strip).save(tmp_path / "a.png")
    mesh = make_mesh()
    task, data = setup(tmp_path, "tiles")
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=16)
    seen = []
    show = module.comparison_pictures.photographs_picture

    def photographs(originals, *arguments, **named):
        seen.extend(image.shape for image in originals)
        return show(originals, *arguments, **named)

    monkeypatch.setattr(module.comparison_pictures, "photographs_picture", photographs)
    drawn = evaluator.drawings(task.init_state(mesh).params, {}, Wanted(pictures=1))
    assert [drawing.stem for drawing in drawn] == ["photographs"]
    side = max(data.eval_resize, 4 * min(data.crop))
    height, width = data.crop
    assert seen == [(side // height * height, 16 * side // width * width, 3)]


def test_photographs_of_a_model_of_any_size_are_not_cut(tmp_path, monkeypatch):
    picture = smooth_picture(np.random.default_rng(1), 64, 80)
    Image.fromarray(picture).save(tmp_path / "a.png")
    config = load_config_file(TINY)
    config.model.update(image_size=(16, 16), spatial_window=2, positions="window", layers=2)
    config.data.update(val_source=f"folder:{tmp_path}", eval_resize=64)
    config = finalize(config)
    task, data, mesh = make_tokenizer_task(config), make_data_config(config), make_mesh()
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=16)
    seen = []
    monkeypatch.setattr(
        module.comparison_pictures,
        "photographs_picture",
        lambda originals, made, **_: seen.append((originals, made)),
    )
    params = task.init_state(mesh).params
    evaluator.drawings(params, {}, Wanted(pictures=1))
    (((original,), (made,)),) = seen
    np.testing.assert_array_equal(original, picture)
    wanted = task.model.apply({"params": params}, to_float(jnp.asarray(picture)[None, None]))
    difference = made.astype(int) - np.asarray(to_uint8(wanted.pixels))[0, 0]
    assert np.abs(difference).max() <= 1  # rounded after sums in another order


TIME = 4
LENGTHS = (6, 2, 4, 5, 4)  # of the videos; one is shorter than a clip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five readable videos of soft moving blobs, and one file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for number, count in enumerate(LENGTHS):
        wide = smooth_picture(rng, 32, 48 + 2 * count)
        write_mp4(
            folder / f"{number}.mp4", np.stack([wide[:, 2 * i : 2 * i + 48] for i in range(count)])
        )
    (folder / "1b.mp4").write_bytes(b"no video at all")
    return folder


# Colours rounded to the nearest, as evaluation reads them.
EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


def clips_of(videos):
    """The clips ``[frames, 16, 16, 3]`` from the middles of the videos, without padding."""
    found = []
    for path in sorted(videos.glob("[0-9].mp4")):
        with av.open(path) as container:
            frames = [
                frame.to_ndarray(format="rgb24", interpolation=EXACT)
                for frame in container.decode(video=0)
            ]
        start = max(len(frames) - TIME, 0) // 2
        found.append(np.stack(frames)[start : start + TIME, 8:24, 16:32])
    return found


@pytest.mark.parametrize(("frames", "devices"), [(TIME, 8), (1, 1)], ids=["video", "image"])
def test_clips_of_several_lengths(videos, tmp_path, frames, devices):
    """A video model, and an image model frame by frame, measured in the same way."""
    config = load_config_file(TINY)
    config.model.frames = frames
    config.data.update(val_source=f"clips:{videos}", eval_resize=32, max_broken=0.2, frames=TIME)
    config = finalize(config)
    task, data = make_tokenizer_task(config), make_data_config(config)
    mesh = make_mesh(devices=jax.devices()[:devices])
    state = task.init_state(mesh)
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=3)
    report = evaluate(
        evaluator,
        weight_sets(state.params, None),
        tmp_path,
        name="x",
        step=3,
        wanted=Wanted(pictures=8, videos=2),
    )

    clips, params = clips_of(videos), jax.device_get(state.params)
    assert [len(clip) for clip in clips] == [4, 2, 4, 4, 4]
    run = jax.jit(task.reconstruct)
    outputs = [run(params, to_float(jnp.asarray(clip[None]))) for clip in clips]
    made = [np.asarray(to_uint8(output.pixels))[0] for output in outputs]
    bits = np.concatenate([np.asarray(o.quantized.bits).reshape(-1, 6) for o in outputs])
    result, oracle = report["results"]["raw"], report["oracle"]
    pairs = list(zip(clips, made, strict=True))
    for name, measure, atol in (("psnr", psnr, 2e-3), ("ssim", ssim, 1e-4)):
        wanted = np.mean([measure(*pair) for pair in pairs])
        np.testing.assert_allclose(result[name], wanted, atol=atol)
        for index, value in enumerate(result["per_frame"][name]):
            here = [[x[index : index + 1] for x in pair] for pair in pairs if len(pair[0]) > index]
            wanted = np.mean([measure(*pair) for pair in here])
            np.testing.assert_allclose(value, wanted, atol=atol)
    whole = [10 * np.log10(255**2 / np.mean((np.float64(a) - b) ** 2)) for a, b in pairs]
    np.testing.assert_allclose(result["psnr_clip"], np.mean(whole), atol=1e-4)
    assert result["psnr_clip"] < result["psnr"] - 2e-4
    assert oracle["psnr_clip"] < oracle["psnr"]
    assert len(result["per_frame"]["psnr"]) == TIME
    assert set(result["per_frame"]) == {"psnr", "ssim"}
    assert set(oracle["per_frame"]) == {"psnr"}
    np.testing.assert_allclose(np.mean(oracle["per_frame"]["psnr"]), oracle["psnr"], rtol=0.1)
    assert result["tokens"] == len(bits) == 4 * sum(map(len, clips))
    assert result["codes_used"] == len(np.unique(bits, axis=0))
    assert (result["count"], report["measured"]["shorter"]) == (5, 1)

    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    text = tokenizer_table(report)
    assert "x, step 3: 5 clips of 4x16x16 (center) from clips:" in text
    assert "clips with fewer frames than that: 1\n" in text
    (row,) = [line for line in text.splitlines() if "of whole clips" in line]
    assert row.split()[-2:] == [f"{v['psnr_clip']:.2f}" for v in (result, oracle)]
    assert "1b.mp4" in text
    names = [pathlib.Path(path).name for path in report["pictures"] + report["videos"]]
    assert names == [
        *("clips_0000003.png", "per_frame_0000003.png"),
        *("clip0_0000003.mp4", "clip1_0000003.mp4"),
    ]
    for path in report["pictures"]:
        Image.open(path).verify()
    # Evenly spaced over six records, of which the third is none.
    for path, wanted in zip(report["videos"], (clips[0], clips[2]), strict=True):
        with av.open(path) as container:
            assert len(list(container.decode(video=0))) == len(wanted)


def test_frozen_networks_compare_reconstructions_with_originals(folder, tmp_path, monkeypatch):
    """LPIPS and the Frechet distance of VGG16 features for two sets of weights, in the report."""
    task, data = setup(folder, "center", size=32)
    mesh = make_mesh(devices=jax.devices()[:2])
    networks = NetworkSettings(lpips=True, frechet=True, neighbours=3)
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=8, networks=networks)
    state = task.init_state(mesh)
    weights = weight_sets(state.params, jax.tree.map(lambda leaf: leaf / 2, state.params))
    batches = []
    compute = evaluator._features.features
    monkeypatch.setattr(
        evaluator._features, "features", lambda pixels: batches.append(0) or compute(pixels)
    )
    report = evaluate(evaluator, weights, tmp_path, name="x", step=0, wanted=Wanted())

    assert len(batches) == 3 * 2  # the originals once, both reconstructions; two batches each
    originals = []
    for path in sorted(folder.glob("[0-9][0-9].png")):
        with Image.open(path) as picture:
            originals.append(np.asarray(picture)[None, :, 8:40])
    real = jnp.asarray(np.stack(originals))
    vgg, alex = load_lpips("vgg16"), load_lpips("alexnet")
    features, distance = jax.jit(vgg_pooled), jax.jit(functools.partial(lpips, net="alexnet"))
    reconstruct = jax.jit(task.reconstruct)
    seen = np.asarray(features(vgg, to_float(real)), np.float64)[:, 0]
    for label, params in weights.items():
        result = report["results"][label]
        output = reconstruct(jax.device_get(params), to_float(real))
        fake = to_float(to_uint8(output.pixels))
        made = np.asarray(features(vgg, fake), np.float64)[:, 0]
        moments = [Moments(512), Moments(512)]
        for each, rows in zip(moments, (seen, made), strict=True):
            each.update(rows, np.ones(COUNT))
        np.testing.assert_allclose(result["frechet_vgg16"], frechet_distance(*moments), rtol=1e-3)
        distances = distance(alex, to_float(real), fake)
        np.testing.assert_allclose(result["lpips"], np.mean(distances), rtol=1e-3)
        assert (result["precision"], result["recall"]) == precision_recall(seen, made)
    assert 0 < report["oracle"]["lpips"] < report["results"]["raw"]["lpips"]
    assert report["judges"]["frechet_vgg16"]["samples"] == COUNT
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    text = tokenizer_table(report)
    assert "Frechet distance, VGG16 features" in text
    assert "precision (k=3)" in text
    assert "11 frames in 512 dimensions" in text
    assert "FID: no weights" in text


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_folder_that_cannot_be_written_to(folder, tmp_path, monkeypatch, moment):
    """One line, and before anything is measured where that can be known."""
    task, data = setup(folder, "center")
    mesh = make_mesh()
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=8)
    passes = []
    run = evaluator.measure
    monkeypatch.setattr(evaluator, "measure", lambda *given: passes.append(0) or run(*given))
    workdir = tmp_path / "export"
    if moment == "before":
        workdir.write_text("a file where the folder should be")
    else:

        def full(path, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("bsq_jax.evaluation.report.write_atomic", full)
    weights = weight_sets(task.init_state(mesh).params, None)
    with pytest.raises(UserError, match=r"cannot write the evaluation into .*export") as caught:
        evaluate(evaluator, weights, workdir, name="x", step=0, wanted=Wanted())
    assert "\n" not in str(caught.value)
    assert len(passes) == (0 if moment == "before" else 1)


def test_writing_is_tried_before(folder, tmp_path, monkeypatch):
    """As in a folder without permission, in which a privileged user may write all the same."""
    task, data = setup(folder, "center")
    mesh = make_mesh()
    evaluator = TokenizerEvaluator(task, data, mesh, batch_size=8)

    def refused(**options):
        raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(evaluator, "measure", None)
    with pytest.raises(UserError, match=r"\(Permission denied\): .* copy the folder") as caught:
        evaluate(evaluator, {"raw": None}, tmp_path, name="x", step=0, wanted=Wanted())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def table_report():
    result = {"psnr": 20.123, "ssim": 0.5, "codes_used": 1234, "usage": 0.5}
    result |= {"bit_entropy": 1.0, "tokens": 2468}
    measured = {"count": 3, "crop": "center", "image_size": [16, 16], "source": "photos"}
    measured |= {"frames": 1, "stride": 1, "shorter": 0, "dtype": "float32"}
    measured |= {"split": "val", "resize": "short side to 16 pixels, box", "unreadable": []}
    measured |= {"stages": 1, "codes": 64}
    return {
        "name": "x",
        "step": 7,
        "results": {"raw": result, "ema": result | {"psnr": 21.0}},
        "oracle": {"name": "best", "psnr": 18.0},
        "judges": {},
        "notes": [],
        "measured": measured,
    }


def test_the_table_has_a_column_for_each_set_of_weights():
    report = table_report()
    measured = report["measured"]
    lines = tokenizer_table(report).splitlines()
    assert lines[0].split() == ["raw", "ema", "best"]
    assert lines[2].split() == ["PSNR", "(dB)", "20.12", "21.00", "18.00"]
    assert lines[3].split() == ["SSIM", "0.5000", "0.5000", "-"]
    assert "1,234" in tokenizer_table(report)
    assert "2,468 tokens" in tokenizer_table(report)
    assert "x, step 7: 3 crops of 16x16 (center) from photos (val)" in tokenizer_table(report)
    assert "FID" not in tokenizer_table(report)
    assert "stages" not in tokenizer_table(report)
    measured["stages"] = 3
    report["results"]["raw"]["codes_dead"] = 21
    assert tokenizer_table(report).endswith("\ndead codes: of 3 stages together, each with 64")
    measured["stages"] = 1

    for name in report["results"]:
        report["results"][name] |= {"lpips": 0.25, "fid": 12.345, "precision": 0.5, "recall": 0.75}
    report["oracle"]["lpips"] = 0.5
    report["judges"] = {"neighbours": {"k": 3}}
    report["notes"] = ["a line of its own"]
    lines = tokenizer_table(report).splitlines()
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    assert lines[4].split() == ["LPIPS", "(AlexNet)", "0.2500", "0.2500", "0.5000"]
    assert lines[5].split() == ["FID", "(Inception-v3)", "12.35", "12.35", "-"]
    assert rows["precision (k=3)"][-3:] == ["0.500", "0.500", "-"]
    assert rows["recall (k=3)"][-3:] == ["0.750", "0.750", "-"]
    assert lines[-1] == "a line of its own"

    measured |= {"frames": 8, "stride": 2, "shorter": 2}
    text = tokenizer_table(report)
    assert "3 clips of 8x16x16 (center) from photos (val), short side to 16 pixels, box" in text
    assert "box, one frame in 2\nclips with fewer frames than that: 2\n" in text


def test_the_table_says_where_one_color_a_patch_is_better():
    report = table_report()
    report["oracle"]["psnr"] = 21.0
    for values, said in (([20.5, 20.9], True), ([20.5, 21.5], False)):
        for result, value in zip(report["results"].values(), values, strict=True):
            result["psnr"] = value
        assert ("PSNR is below that of best" in tokenizer_table(report)) == said
