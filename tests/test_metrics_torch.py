"""Metrics of pictures against packages written for PyTorch, which is the oracle here."""

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")
msssim = pytest.importorskip("pytorch_msssim")

from bsq_jax.evaluation import metrics  # noqa: E402

pytestmark = pytest.mark.torch


def clips(size):
    """A smooth clip, and blurred, noisy and inverted ones: uint8 ``[1, 2, size, size, 3]``."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(1, 2, size, size, 3))
    smooth = 127.5 + 400 * ndimage.gaussian_filter(rough, (0, 0, 3, 3, 0))
    original = np.clip(smooth, 0, 255).astype(np.uint8)
    blurred = ndimage.gaussian_filter(original, (0, 0, 2, 2, 0))
    noisy = np.clip(original + rng.normal(0, 20, original.shape), 0, 255).astype(np.uint8)
    return original, {"blurred": blurred, "noisy": noisy, "inverted": 255 - original}


@pytest.mark.parametrize("kind", ["blurred", "noisy", "inverted"])
@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_structural_similarity_matches_pytorch_msssim(name, kind):
    # A multiple of 16: at an odd side that package counts a border of zeros.
    original, others = clips(176)
    value = getattr(metrics, name)(original, others[kind])

    def frames(pixels):
        return torch.from_numpy(pixels[0].astype(np.float64)).movedim(-1, 1)

    oracle = getattr(msssim, name)(
        frames(original), frames(others[kind]), data_range=255, size_average=False
    )
    np.testing.assert_allclose(value, oracle.numpy()[None], rtol=0, atol=1e-4)  # of each frame
