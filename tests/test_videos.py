"""Videos beside each other. Oracle: arrays laid out by hand, and the file decoded by PyAV."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.video import Video
from bsq_jax.media import videos
from bsq_jax.media.timing import Timing
from bsq_jax.media.videos import check_encoder, encode_video, side_by_side, write_mp4

CARD = np.array(
    [[200, 50, 30], [30, 200, 50], [40, 60, 210], [250, 240, 20], [128, 128, 128], [0, 0, 0],
     [255, 255, 255], [90, 20, 160]]
)  # fmt: skip
# Shares of red and blue in luma by H.273, by number of the matrix.
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}


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
    sheet = side_by_side({"original": left, "18 bits a patch": right})
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


def by_the_tags(frame):
    """RGB 0..255 of the planes of a frame by what it says of itself, float64 [height, width, 3]."""
    red, blue = MATRICES[frame.colorspace]
    luma, *chroma = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    )
    full = frame.color_range == 2
    y = luma / 255.0 if full else (luma - 16.0) / 219
    cb, cr = (np.kron(c - 128.0, np.ones((2, 2))) / (255 if full else 224) for c in chroma)
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return 255 * np.stack([r, g, b], axis=-1)


@pytest.mark.parametrize(
    ("lines", "matrix"), [(64, 6), (718, 6), (719, 6), (720, 1), (721, 1), (1080, 1)]
)
def test_colours_are_those_that_the_file_says(lines, matrix, tmp_path):
    """As players that read the tags show it, and those that go by the number of lines."""
    bands = np.repeat(CARD.astype(np.uint8), 16, axis=0)
    frames = np.broadcast_to(bands, (2, lines, 128, 3))
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_video([frames], Fraction(25)))
    with av.open(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        found = (context.colorspace, context.color_primaries, context.color_trc)
        assert (*found, context.color_range) == (matrix, 1, 1, 1)
        decoded = list(container.decode(stream))
    assert len(decoded) == 2
    middles = slice(8, None, 16)  # away from edges between colours, which 4:2:0 blurs
    for frame in decoded:
        assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (matrix, 1, 1)
        shown = by_the_tags(frame)[4:-4:8, middles]
        assert np.abs(shown - CARD).max() <= 2
        if lines in (64, 718, 720, 1080):
            untagged = np.abs(shown - frame.to_ndarray(format="rgb24")[4:-4:8, middles])
            assert untagged.max() <= 2
    with Video(path) as video:
        (_, pixels), *_ = video.frames([0])
        assert np.abs(pixels()[4:-4:8, middles].astype(float) - CARD).max() <= 2


@pytest.mark.parametrize("lines", [7, 64, 720])
def test_rgb_is_kept_and_said_to_be(lines, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, lines, 31, 3)).astype(np.uint8)
    path = tmp_path / "a.mkv"
    path.write_bytes(encode_video([frames], Fraction(25), exact=True))
    with av.open(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        # Of H.273: no matrix, primaries and curve of sRGB, 0..255.
        found = (context.colorspace, context.color_primaries, context.color_trc)
        assert (*found, context.color_range) == (0, 1, 13, 2)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    np.testing.assert_array_equal(np.stack(decoded), frames)
    with Video(path) as video:
        again = [pixels() for _, pixels in video.frames(range(3))]
    np.testing.assert_array_equal(np.stack(again), frames)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("ticks", "lasting"),
    [(1000, [33, 33, 34, 1000, 1000, 1000, 33]), (100, [10, 20, 5, 300]), (90000, [90 * 7]),
     (Fraction(30000, 1001), [1, 2, 1, 1, 30])],
)  # fmt: skip
def test_times_are_in_the_file(ticks, lasting, exact):
    timing = Timing(Fraction(ticks), np.array(lasting))
    frames = ramp(len(lasting), 32, 48)
    data = encode_video([frames[:1], frames[1:]] if len(frames) > 1 else [frames], timing,
                        exact=exact)  # fmt: skip
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        assert container.duration / 1e6 == pytest.approx(float(timing.seconds), abs=1e-3)
    np.testing.assert_allclose(times, timing.starts / float(ticks), atol=5.1e-4)
    with Video(data) as video:
        if len(lasting) > 1:
            found = video.timing()
            assert float(found.seconds) == pytest.approx(float(timing.seconds), abs=1e-3)


def test_frames_faster_than_ticks_keep_their_number():
    timing = Timing(Fraction(10**6), np.array([100, 100, 50000, 100]))
    data = encode_video([ramp(4, 16, 16)], timing, exact=True)
    with Video(data) as video:
        assert video.frame_index.times.tolist() == [0, 1, 2, 50]
        assert len(list(video.frames(range(4)))) == 4


@pytest.mark.parametrize(
    ("size", "rate", "exact", "said"),
    [
        ((2, 20000), 25, False, "try .mkv"),
        ((16, 16), Fraction(2**32 - 1), False, "try .mkv"),
        ((16, 16), Fraction(1, 2**32 - 1), True, "try .mp4"),
        ((16, 16), Fraction(2000), True, "milliseconds; choose .mp4"),
    ],
)
def test_what_cannot_be_written_is_named(size, rate, exact, said):
    with pytest.raises(UserError, match=said) as caught:
        encode_video([np.zeros((1, *size, 3), np.uint8)], rate, exact=exact)
    assert "\n" not in str(caught.value)
