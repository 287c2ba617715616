"""Videos beside each other. Oracle: arrays laid out by hand, and the file decoded by PyAV."""

import av
import numpy as np
import pytest

from bsq_jax.core import videos
from bsq_jax.core.errors import UserError
from bsq_jax.core.videos import beside, check_encoder, write_mp4


def ramp(time, height, width):
    """Soft colours that move, uint8 [time, height, width, 3]."""
    t, y, x, c = np.ogrid[0:time, 0:height, 0:width, 0:3]
    return np.rint(127 + 120 * np.sin(0.03 * x + 0.02 * y * (c + 1) + 0.4 * t)).astype(np.uint8)


@pytest.mark.smoke
def test_a_file_holds_the_frames(tmp_path):
    frames = ramp(7, 50, 70)
    path = tmp_path / "videos" / "a.mp4"
    for _ in range(2):
        write_mp4(path, frames, fps=5)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 7
    error = np.mean((np.stack(decoded).astype(float) - frames) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error) > 36).all()
    assert [found.name for found in path.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, 8, 8, 3), np.float32, r"must be uint8 .* not float32 \[3, 8, 8, 3\]"),
        ((0, 8, 8, 3), np.uint8, "must be uint8"),
        ((3, 8, 8), np.uint8, "must be uint8"),
        ((3, 8, 7, 3), np.uint8, "even sides, not 8x7"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, shape, dtype, words):
    with pytest.raises(UserError, match=words):
        write_mp4(tmp_path / "a.mp4", np.zeros(shape, dtype))


def test_an_encoder_that_is_missing_is_named(monkeypatch):
    check_encoder()
    monkeypatch.setattr(videos, "_CODEC", "libx999")
    with pytest.raises(UserError, match=r"no libx999 .*eval\.videos=0") as caught:
        check_encoder()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("side", "scale"), [(7, 46), (100, 4), (320, 1), (401, 1)])
def test_clips_stand_beside_each_other_under_their_names(side, scale):
    left, right = ramp(2, 6, side), 255 - ramp(2, 6, side)
    sheet = beside({"original": left, "18 bits a patch": right})
    assert sheet.shape[1] % 2 == sheet.shape[2] % 2 == 0
    width, bar = side * scale, sheet.shape[1] - 6 * scale
    assert 2 * width <= sheet.shape[2] <= 2 * width + 6
    shown = sheet[:, bar:]
    for clip, first in ((left, 0), (right, width + 4)):
        np.testing.assert_array_equal(shown[:, ::scale, first : first + width : scale], clip)
    large = shown[:, :, :width].reshape(2, 6, scale, side, scale, 3)
    assert (large == large[:, :, :1, :, :1]).all()
    for part in (sheet[:, :bar, :width], sheet[:, :bar, width:]):
        assert (part < 128).any()
    assert (sheet[0, :bar] == sheet[1, :bar]).all()
