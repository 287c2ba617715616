"""Colours of video frames. Oracles: the matrices of H.273 and the curves of BT.2100, BT.2390 and
IEC 61966-2-1 in float64, written here from the standards.
"""

from fractions import Fraction

import av
import numpy as np
import pytest

from bsq_jax.data.decoding import colours
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.records import BrokenRecord

# kr and kb by the number in H.273.
MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
COLOUR = (200, 50, 30)


def ycbcr(colour, matrix, *, full, bits=8):
    """The three samples of a colour, rounded."""
    kr, kb = MATRICES[matrix]
    r, g, b = np.array(colour) / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    most, unit = 2**bits - 1, 2 ** (bits - 8)
    if full:
        values = y * most, cb * most + 128 * unit, cr * most + 128 * unit
    else:
        values = (219 * y + 16) * unit, (224 * cb + 128) * unit, (224 * cr + 128) * unit
    return [round(value) for value in values]


def filled(layout, samples, size):
    """A frame whose planes are each of one value."""
    height, width = size
    frame = av.VideoFrame(width, height, layout)
    kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    for plane, value in zip(frame.planes, samples, strict=True):
        plane.update(np.full(plane.buffer_size // kind().nbytes, value, kind).tobytes())
    return frame


def write(path, frame, codec, *, matrix=2, levels=0, transfer=2, primaries=2, options=None):
    """A file of one frame, tagged so; 2 and 0 are for 'not specified'."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, frame.format.name
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, levels
        context.color_trc, context.color_primaries = transfer, primaries
        frame.colorspace, frame.color_range = matrix, levels
        frame.color_trc, frame.color_primaries = transfer, primaries
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path, *, exact=True):
    with Video(path, exact=exact) as video:
        return next(video.frames([0]))[1]()


X264 = ("libx264", "mp4", {"qp": "0"})
FFV1 = ("ffv1", "mkv", {})
CODED = {"yuv420p": X264, "yuv444p": X264, "yuv420p10le": X264, "yuv422p10le": FFV1}


@pytest.mark.smoke
@pytest.mark.parametrize("layout", CODED)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("size", "tagged", "meant"),
    [((48, 64), tag, tag) for tag in MATRICES]
    + [((720, 64), tag, tag) for tag in (5, 9)]
    + [
        ((48, 64), 2, 6),
        ((718, 64), 2, 6),
        ((720, 64), 2, 1),
        ((544, 1280), 2, 1),
        ((1280, 720), 2, 1),  # upright, stored so
        ((576, 720), 2, 6),
        ((48, 64), 3, 6),  # a number that is reserved
    ],
)
def test_matrix_by_the_tag_or_else_by_the_size(tmp_path, size, tagged, meant, full, layout):
    codec, ending, options = CODED[layout]
    bits = 10 if "10" in layout else 8
    frame = filled(layout, ycbcr(COLOUR, meant, full=full, bits=bits), size)
    path = tmp_path / f"a.{ending}"
    write(path, frame, codec, matrix=tagged, levels=2 if full else 1, options=options)
    for exact, tolerance in ((True, 1.5), (False, 2.5)):
        pixels = shown(path, exact=exact)
        assert pixels.shape == (*size, 3)
        assert np.abs(pixels - np.array(COLOUR, float)).max() <= tolerance
    frame = filled(layout, ycbcr(COLOUR, meant, full=False, bits=bits), size)
    write(path, frame, codec, matrix=tagged, options=options)  # range not specified: limited
    assert np.abs(shown(path) - np.array(COLOUR, float)).max() <= 1.5


@pytest.mark.parametrize("size", [(48, 64), (720, 64)])
@pytest.mark.parametrize(
    ("codec", "layout"), [("libx264rgb", "rgb24"), ("ffv1", "bgr0"), ("ffv1", "gbrp10le")]
)
def test_rgb_is_left_as_it_is(tmp_path, codec, layout, size):
    rgb = av.VideoFrame.from_ndarray(np.full((*size, 3), COLOUR, np.uint8), format="rgb24")
    path = tmp_path / "a.mkv"
    write(path, rgb.reformat(format=layout), codec, options={"qp": "0"} if "x264" in codec else {})
    np.testing.assert_array_equal(shown(path), np.full((*size, 3), COLOUR))


@pytest.mark.parametrize(("size", "matrix"), [((480, 16), 6), ((720, 16), 1)])
def test_y4m_has_the_same_rule(tmp_path, size, matrix):
    height, width = size
    luma, blue, red = ycbcr(COLOUR, matrix, full=False)
    quarter = height * width // 4
    planes = bytes([luma]) * (4 * quarter) + bytes([blue]) * quarter + bytes([red]) * quarter
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420\nFRAME\n" % (width, height) + planes)
    assert np.abs(shown(path) - np.array(COLOUR, float)).max() <= 1.5


@pytest.mark.parametrize("layout", ["gray", "gray10le"])
def test_grey_is_full_range_unless_tagged(tmp_path, layout):
    unit = 4 if "10" in layout else 1
    for levels, stored, meant in ((1, 16, 0), (1, 235, 255), (1, 126, 128), (2, 126, 126)):
        path = write(tmp_path / "a.mkv", filled(layout, [stored * unit], (16, 16)), "ffv1")
        assert np.abs(shown(path) - float(stored)).max() <= 1
        write(path, filled(layout, [stored * unit], (16, 16)), "ffv1", levels=levels)
        assert np.abs(shown(path) - float(meant)).max() <= 1


@pytest.mark.parametrize("tag", [8, 10, 14])
def test_matrices_that_are_not_read_are_named(tmp_path, tag):
    frame = filled("yuv444p", (120, 90, 150), (16, 16))
    path = write(tmp_path / "a.mkv", frame, "ffv1", matrix=tag)
    with pytest.raises(BrokenRecord, match=r"its colours are stored as .* not read here"):
        shown(path)


@pytest.mark.parametrize("error", [OSError(95, "not supported"), AttributeError("no")])
def test_whatever_the_converter_raises_is_a_broken_record(error):
    class Failing:
        def reformat(self, *args, **kwargs):
            raise error

    frame = filled("yuv420p", (120, 90, 150), (16, 16))
    with pytest.raises(BrokenRecord):
        colours.to_srgb(Failing(), frame, exact=True)


# --- HDR ---


def pq(nits):
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def nits_of_pq(signal):
    root = signal ** (1 / 78.84375)
    light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return 10000 * light ** (1 / 0.1593017578125)


def nits_of_hlg(signal):
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    return 1000 * scene * luma[..., None] ** 0.2


def primaries_to_xyz(red, green, blue):
    """By the chromaticities, with the white D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (red, green, blue)]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


BT709 = primaries_to_xyz((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BT2020 = primaries_to_xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
P3 = primaries_to_xyz((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def reference(nits, primaries):
    """BT.2390's curve from 1000 to 203 nits on the largest component, then sRGB; [..., 3]."""
    largest = np.maximum(nits.max(-1), 1e-9)
    signal = np.minimum(pq(largest) / pq(1000), 1)
    most = pq(203) / pq(1000)
    knee = 1.5 * most - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    mapped = np.where(signal < knee, signal, spline + (-2 * t**3 + 3 * t**2) * most)
    nits = nits * (nits_of_pq(mapped * pq(1000)) / largest)[..., None]
    linear = np.clip(nits / 203 @ np.linalg.solve(BT709, primaries).T, 0, 1)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * np.where(linear <= 0.0031308, low, high)


@pytest.mark.parametrize(("transfer", "light"), [(16, nits_of_pq), (18, nits_of_hlg)])
@pytest.mark.parametrize(("number", "primaries"), [(9, BT2020), (1, BT709), (12, P3), (2, BT2020)])
def test_tone_mapping_is_that_of_the_standards(transfer, light, number, primaries):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (150, 40, 3), dtype=np.uint16)
    pixels[:65] = np.linspace(0, 65535, 65 * 40).astype(np.uint16).reshape(65, 40, 1)  # greys
    made = colours.tone_mapped(pixels, transfer, number)
    assert made.dtype == np.uint8
    expected = reference(light(pixels / 65535), primaries)
    assert np.abs(made - expected).max() <= 0.6
    greys = made[:65].reshape(-1, 3).astype(int)
    assert (np.diff(greys, axis=0) >= 0).all()
    assert greys[0].max() == 0
    assert greys[-1].min() == 255


@pytest.mark.parametrize(("transfer", "light"), [(16, nits_of_pq), (18, nits_of_hlg)])
def test_hdr_files_are_tone_mapped(tmp_path, transfer, light):
    """A colour written as 10 bits in BT.2020, as HDR10 and HLG are."""
    for signal in ((0.58, 0.5, 0.42), (0.5, 0.5, 0.5), (0.75, 0.74, 0.70)):
        samples = ycbcr(255 * np.array(signal), 9, full=False, bits=10)
        frame = filled("yuv420p10le", samples, (48, 64))
        tags = {"matrix": 9, "levels": 1, "transfer": transfer, "primaries": 9}
        path = write(tmp_path / "a.mkv", frame, "libx264", options={"qp": "0"}, **tags)
        expected = reference(light(np.array(signal)), BT2020)
        for exact in (True, False):
            assert np.abs(shown(path, exact=exact) - expected).max() <= 3, signal
