"""Oracles: closed forms, scikit-image, sewar, float64 scipy.ndimage, counts in Python."""

import functools
import math
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sewar
from absl.testing import parameterized
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation import metrics
from bsq_jax.quantizers.layout import TokenLayout


def photographs(size: int) -> np.ndarray:
    """Two clips of two frames, uint8 ``[2, 2, size, size, 3]``, each frame another crop."""
    astronaut, cat = data.astronaut(), data.chelsea()
    crops = [picture[y : y + size, 40 : 40 + size] for picture in (astronaut, cat) for y in (0, 90)]
    return np.stack(crops).reshape(2, 2, size, size, 3)


def distort(pixels: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.float32)


def per_frame(metric, reference: np.ndarray, distorted: np.ndarray) -> np.ndarray:
    """A float64 oracle of one frame ``[height, width, channel]`` for each frame."""
    pairs = zip(reference.astype(np.float64), distorted.astype(np.float64), strict=True)
    return np.array([[metric(a, b) for a, b in zip(x, y, strict=True)] for x, y in pairs])


# Photographs with noise and blur; flat white against nearly white, where float32 has least room;
# anticorrelated ones, with negative structure terms; and ones that differ in the last rows and
# columns alone, which shows how a side that is odd, at some scale, is halved.
def pairs(size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    photos = photographs(size)
    white = np.full_like(photos, 255)
    border = distort(photos, 80.0)
    border[:, :, :-2, :-2] = photos[:, :, :-2, :-2]
    return {
        "border": (photos, border),
        "noise": (photos, distort(photos, 12.0)),
        "blur": (photos, ndimage.uniform_filter(photos, (1, 1, 3, 3, 1)).astype(np.float32)),
        "white": (white, distort(white, 3.0)),
        "negative": (photos, 255.0 - photos.astype(np.float32)),
    }


def psnr_float64(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of one frame by scikit-image."""
    return peak_signal_noise_ratio(a, b, data_range=255)


def ssim_float64(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one frame by scikit-image."""
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        win_size=11, data_range=255, channel_axis=-1,
    )  # fmt: skip


@pytest.mark.smoke
def test_psnr_has_its_closed_form():
    reference = np.full((2, 2, 8, 8, 3), 100, np.uint8)
    distorted = reference.astype(np.float32)
    distorted[0] += 5.0
    distorted[1, 0] -= 16.0
    value = jax.jit(metrics.psnr)(reference, distorted)
    wanted = [[20 * math.log10(255 / 5)] * 2, [20 * math.log10(255 / 16), metrics.PSNR_CAP]]
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4)
    assert value.dtype == jnp.float32


def test_psnr_of_a_clip_is_that_of_its_mean_squared_error():
    """Closed form: errors of 1 and 7 in two frames have a mean square of 25, as one of 5 has."""
    reference = np.full((3, 3, 8, 8, 3), 100, np.uint8)
    distorted = reference.astype(np.float32)
    distorted[0] += np.array([1.0, 7.0, 90.0])[:, None, None, None]  # the third is padding
    distorted[1] += 5.0
    of_frames = np.array(metrics.psnr(reference, distorted))
    of_frames[0, 2] = np.nan
    values = metrics.clip_psnr(of_frames, [2, 3, 3])
    np.testing.assert_allclose(values[:2], 10 * np.log10(255**2 / 25), atol=1e-4)
    assert values[2] == metrics.PSNR_CAP
    assert values[0] < of_frames[0, :2].mean() - 5

    rng = np.random.default_rng(0)
    photos = photographs(64)
    noisy = distort(photos, rng.uniform(1, 40, (2, 2, 1, 1, 1)))
    wanted = [
        peak_signal_noise_ratio(a, b, data_range=255)
        for a, b in zip(photos.astype(np.float64), noisy.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(
        metrics.clip_psnr(metrics.psnr(photos, noisy), [2, 2]), wanted, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["noise", "blur", "white", "negative", "border"])
def test_psnr_matches_skimage(kind):
    reference, distorted = pairs(64)[kind]
    wanted = per_frame(psnr_float64, reference, distorted)
    np.testing.assert_allclose(metrics.psnr(reference, distorted), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["noise", "blur", "white", "negative", "border"])
def test_ssim_matches_skimage(kind):
    # skimage, too, averages only over windows inside the frame: it crops 5 pixels of each border.
    reference, distorted = pairs(64)[kind]

    value = jax.jit(metrics.ssim)(reference, distorted)
    wanted = per_frame(ssim_float64, reference, distorted)
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4)
    assert value.dtype == jnp.float32


def ms_ssim_float64(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of one frame in float64, from the two-dimensional definition, by scipy.ndimage."""
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    scores = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        score = 1.0
        for scale, weight in enumerate(weights):
            mean = [ndimage.correlate(v, window)[5:-5, 5:-5] for v in (x, y, x * x, y * y, x * y)]
            covariance = mean[4] - mean[0] * mean[1]
            spread = mean[2] - mean[0] ** 2 + mean[3] - mean[1] ** 2
            term = (2 * covariance + 7.65**2) / (spread + 7.65**2)
            if scale == 4:
                squares = mean[0] ** 2 + mean[1] ** 2
                term = term * (2 * mean[0] * mean[1] + 2.55**2) / (squares + 2.55**2)
            score *= max(term.mean(), 0.0) ** weight
            # The 2x2 mean from each even pixel on, with the border repeated, then every second.
            x, y = (
                ndimage.correlate(v, np.full((2, 2), 0.25), mode="nearest", origin=-1)[::2, ::2]
                for v in (x, y)
            )
        scores.append(score)
    return float(np.mean(scores))


@pytest.mark.parametrize("size", [161, 180])
def test_ms_ssim_matches_float64(size):
    compiled = jax.jit(metrics.ms_ssim)
    for kind, (reference, distorted) in pairs(size).items():
        wanted = per_frame(ms_ssim_float64, reference, distorted)
        value = compiled(reference, distorted)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-5, err_msg=kind)
        assert (kind == "negative") == bool(np.all(wanted == 0))


@pytest.mark.parametrize(
    ("metric", "oracle", "size"),
    [
        (metrics.psnr, psnr_float64, (1, 7)),
        (metrics.ssim, ssim_float64, (11, 64)),
        (metrics.ssim, ssim_float64, (61, 33)),
        (metrics.ms_ssim, ms_ssim_float64, (161, 178)),
    ],
)
def test_frames_that_are_odd_or_not_square_match_float64(metric, oracle, size):
    for kind, pair in pairs(180).items():
        # From the bottom right, where "border" differs.
        reference, distorted = (frames[:1, :1, -size[0] :, -size[1] :] for frames in pair)
        wanted = per_frame(oracle, reference, distorted)
        value = metric(reference, distorted)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4, err_msg=kind)


def test_long_sides_in_parts_match_skimage(monkeypatch):
    monkeypatch.setattr(metrics.image_quality, "_MOST_WINDOWS", 20)
    reference, distorted = (frames[:, :, :61, :50] for frames in pairs(64)["noise"])
    wanted = per_frame(ssim_float64, reference, distorted)
    np.testing.assert_allclose(metrics.ssim(reference, distorted), wanted, rtol=0, atol=1e-4)


def test_ms_ssim_matches_sewar():
    # sewar halves from the other end and averages channels within each scale: at a side that stays
    # odd through all halvings, one channel at a time, mirrored, its 2x2 blocks are the same.
    def oracle(a, b):
        channels = zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True)
        return np.mean([sewar.msssim(x[::-1, ::-1], y[::-1, ::-1], MAX=255) for x, y in channels])

    # Not "negative": sewar takes the real part of a complex power.
    for kind in ("noise", "blur", "border"):
        reference, distorted = (frames[:, :1] for frames in pairs(177)[kind])
        wanted = per_frame(oracle, reference, distorted)
        value = metrics.ms_ssim(reference, distorted)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4, err_msg=kind)


def test_identical_pictures_score_the_best():
    pixels = photographs(161)
    bests = {metrics.psnr: metrics.PSNR_CAP, metrics.ssim: 1.0, metrics.ms_ssim: 1.0}
    for metric, best in bests.items():
        np.testing.assert_allclose(jax.jit(metric)(pixels, pixels), [[best] * 2] * 2, rtol=1e-6)


def test_metrics_refuse_what_they_cannot_score():
    small = np.zeros((1, 1, 160, 200, 3), np.uint8)
    with pytest.raises(UserError, match="at least 161x161 pixels, got 160x200"):
        metrics.ms_ssim(small, small)
    with pytest.raises(UserError, match="at least 11x11"):
        metrics.ssim(small[:, :, :10], small[:, :, :10])
    with pytest.raises(UserError, match="must be the same"):
        metrics.psnr(small, small[:, :, 1:])
    with pytest.raises(UserError, match="time axis of 1"):
        metrics.psnr(small[0], small[0])
    with pytest.raises(UserError, match="not int32"):
        metrics.psnr(small.astype(np.int32), small)


class ImageMetrics(chex.TestCase):
    """Compiled, op by op and on a device: the same values, of a frame each."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.named_parameters(
        ("psnr", metrics.psnr, psnr_float64, 64),
        ("ssim", metrics.ssim, ssim_float64, 64),
        ("ms_ssim", metrics.ms_ssim, ms_ssim_float64, 161),
    )
    def test_variants_agree_with_float64(self, metric, oracle, size):
        reference, distorted = pairs(size)["noise"]
        value = self.variant(metric)(reference, distorted)
        chex.assert_shape(value, (2, 2))
        chex.assert_type(value, jnp.float32)
        wanted = per_frame(oracle, reference, distorted).astype(np.float32)
        chex.assert_trees_all_close(value, wanted, rtol=0, atol=1e-4)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_patch_mean(self):
        pixels = photographs(32)
        value = self.variant(functools.partial(metrics.patch_mean, patch=16))(pixels)
        chex.assert_shape(value, pixels.shape)
        chex.assert_type(value, jnp.float32)
        blocks = pixels.reshape(2, 2, 2, 16, 2, 16, 3).mean((3, 5), keepdims=True)
        wanted = np.broadcast_to(blocks, (2, 2, 2, 16, 2, 16, 3)).reshape(pixels.shape)
        chex.assert_trees_all_close(value, wanted.astype(np.float32), atol=1e-4)


@pytest.mark.parametrize("patch", [8, 5, (16, 4), (3, 40)])
def test_patch_mean_is_the_mean_of_each_patch(patch):
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    pixels = photographs(32)[:, :, :, :28]
    value = np.asarray(metrics.patch_mean(pixels, patch))
    chex.assert_shape(value, pixels.shape)
    for row in range(0, 32, high):
        for column in range(0, 28, wide):
            block = np.s_[:, :, row : row + high, column : column + wide]
            wanted = pixels[block].astype(np.float64).mean((2, 3), keepdims=True)
            np.testing.assert_allclose(value[block] - wanted, 0, atol=1e-4)


@pytest.mark.smoke
def test_mean_accumulator_is_exact_and_ignores_padding():
    rng = np.random.default_rng(1)
    values = rng.normal(1e6, 1.0, 1000)
    accumulator = metrics.MeanAccumulator()
    for start in range(0, 1000, 64):
        batch = np.full(64, np.nan)
        part = values[start : start + 64]
        batch[: len(part)] = part
        mask = np.arange(64) < len(part)
        accumulator.update({"psnr": batch, "twice": 2 * batch}, mask)
    result = accumulator.result()
    np.testing.assert_allclose(result["psnr"], math.fsum(values) / 1000, rtol=1e-14)
    np.testing.assert_allclose(result["twice"], math.fsum(values) / 500, rtol=1e-14)


def test_mean_accumulator_weights_and_refusals():
    mean = metrics.MeanAccumulator()
    with pytest.raises(UserError, match="no example was counted"):
        mean.result()
    mean.update({"a": jnp.array([1.0, 4.0, jnp.inf])}, jnp.array([1.0, 0.5, 0.0]))
    assert mean.result() == {"a": 2.0}
    mean.update({"a": [np.nan]}, [True])
    assert math.isnan(mean.result()["a"])
    with pytest.raises(UserError, match="one value per example"):
        mean.update({"a": [1.0, 2.0]}, [True])
    with pytest.raises(UserError, match="finite weights of at least 0"):
        mean.update({"a": [1.0]}, [-1.0])


def test_clips_count_alike_and_frames_count_where_they_are_real():
    rng = np.random.default_rng(2)
    values = rng.normal(20, 3, (7, 4))
    frames, mask = np.array([4, 1, 2, 3, 3, 4, 2]), np.array([1, 1, 1, 0, 1, 0, 1], bool)
    real = np.arange(4)[None, :] < frames[:, None]
    means = metrics.ClipMeans()
    for part in (slice(0, 3), slice(3, 7)):
        # The longest clip that counts has its fourth frame in the first part alone.
        given = np.where(real & mask[:, None], values, np.nan)[part]
        means.update({"a": given, "twice": 2 * given}, mask[part], frames[part])
    kept = [values[i, : frames[i]] for i in np.flatnonzero(mask)]
    wanted = np.mean([clip.mean() for clip in kept])
    assert abs(wanted - np.concatenate(kept).mean()) > 0.01  # another mean
    np.testing.assert_allclose(means.result()["a"], wanted, rtol=1e-12)
    np.testing.assert_allclose(means.result()["twice"], 2 * wanted, rtol=1e-12)
    at = [np.mean([clip[index] for clip in kept if len(clip) > index]) for index in range(4)]
    np.testing.assert_allclose(means.per_frame()["a"], at, rtol=1e-12)

    short = metrics.ClipMeans()
    short.update({"a": values}, mask, np.minimum(frames, 2))
    assert len(short.per_frame()["a"]) == 2
    assert metrics.ClipMeans().per_frame() == {}
    with pytest.raises(UserError, match="one value per frame"):
        short.update({"a": values[:, 0]}, mask, frames)


def entropy(items: list) -> float:
    total = len(items)
    return -sum(n / total * math.log2(n / total) for n in Counter(items).values())


def code_usage(length, **options):
    return metrics.CodeUsage(TokenLayout(1, length, 2**length), **options)


@pytest.mark.parametrize("length", [1, 5, 18, 20, 21, 36, 64, 65, 144])
def test_code_usage_counts_every_code(length):
    rng = np.random.default_rng(length)
    # Few distinct codes, some of which differ in their last bit alone, drawn with repetition.
    book = rng.integers(0, 2, (40, length), np.uint8)
    book[20:] = book[:20]
    book[20:, -1] ^= 1
    usage = code_usage(length)
    seen = []
    for step in range(4):
        bits = book[rng.integers(0, 40, (3, 2, 5))]
        mask = np.array([True, step != 3, True])
        seen += [tuple(row.tolist()) for row in bits[mask].reshape(-1, length)]
        usage.update(bits, mask)
    # Of frames by themselves: the second of the first example is padding.
    of_frames = code_usage(length)
    of_frames.update(bits, mask[:, None] & np.array([[True, False], [True, True], [True, True]]))
    wanted = Counter(map(tuple, np.concatenate([bits[0, 0], *bits[2]]).tolist()))
    assert of_frames.result()["tokens"] == wanted.total() == 15
    assert of_frames.result()["codes_used"] == len(wanted)
    result = usage.result()
    assert result["tokens"] == len(seen) == 110
    assert result["codes_used"] == len(set(seen))
    assert result["usage"] == len(set(seen)) / min(2**length, 110)
    np.testing.assert_allclose(result["perplexity"], 2 ** entropy(seen), rtol=1e-12)
    assert result.get("codes_dead") == (2**length - len(set(seen)) if length <= 5 else None)
    np.testing.assert_allclose(result["bit_means"], np.mean(seen, axis=0), rtol=1e-12)
    columns = [[code[d] for code in seen] for d in range(length)]
    np.testing.assert_allclose(result["bit_entropy"], np.mean([*map(entropy, columns)]), atol=1e-12)
    groups = [[code[d : d + 9] for code in seen] for d in range(0, length, 9)]
    np.testing.assert_allclose(result["group_entropies"], [*map(entropy, groups)], atol=1e-12)


def test_code_usage_of_all_codes_is_complete():
    every = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    usage = code_usage(8, group_size=4)
    usage.update(np.concatenate([every, every]))
    assert usage.result() == {
        "codes_used": 256, "tokens": 512, "usage": 1.0,
        "perplexity": 256.0, "codes_dead": 0,
        "bit_means": [0.5] * 8, "bit_entropy": 1.0, "group_entropies": [4.0, 4.0],
    }  # fmt: skip


@pytest.mark.parametrize("length", [36, 72])
def test_code_usage_of_many_batches_keeps_every_code(length):
    # More tokens than the accumulator holds back before it sorts.
    rng = np.random.default_rng(3)
    usage = code_usage(length)
    seen: set[bytes] = set()
    for _ in range(5):
        bits = rng.integers(0, 2, (40_000, length), np.uint8)
        bits[:, 17:] = 0
        usage.update(bits)
        seen.update(row.tobytes() for row in bits)
    assert usage.result()["codes_used"] == len(seen)


@pytest.mark.parametrize("layout", [TokenLayout(1, 5, 20), TokenLayout(2, 5, 20)])
def test_codes_are_those_of_the_quantizer(layout):
    """Fewer than patterns, and with two stages 400 out of two times twenty."""
    drawn = np.random.default_rng(0).integers(0, 17, (50, layout.stages))
    drawn[0] = 19
    bits = drawn[..., None] >> np.arange(5)[::-1] & 1
    usage = metrics.CodeUsage(layout)
    usage.update(bits.reshape(50, layout.length))
    found, seen = usage.result(), list(map(tuple, drawn.tolist()))
    assert found["codes_used"] == len(set(seen))
    assert found["usage"] == len(set(seen)) / min(20**layout.stages, 50)
    assert found["codes_dead"] == sum(20 - len(set(column)) for column in drawn.T)
    np.testing.assert_allclose(found["perplexity"], 2 ** entropy(seen), rtol=1e-12)


def test_code_usage_refuses_what_it_cannot_count():
    usage = code_usage(4)
    with pytest.raises(UserError, match="no token was counted"):
        usage.result()
    with pytest.raises(UserError, match=r"expected bits \[batch, ..., 4\]"):
        usage.update(np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match="zeros and ones"):
        usage.update(np.full((2, 4), 2, np.uint8))
    with pytest.raises(UserError, match="mask has shape"):
        usage.update(np.zeros((2, 4), np.uint8), [True])
