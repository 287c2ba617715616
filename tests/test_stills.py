"""Encoded pictures as people have them: orientation, odd and damaged metadata, rare pixel types.

The oracle is the array that was put into the file, or Pillow on the same pixels without metadata.
"""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from bsq_jax.data.decoding import stills
from bsq_jax.data.records import BrokenRecord

ORIENTATION, RESOLUTION, MAKE = 0x0112, 0x011A, 0x010F


def encode(image, file_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def stored_as(upright, orientation):
    """The array that a file of this orientation holds, by the EXIF standard."""
    return np.ascontiguousarray(
        {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
    )


def exif_of(*fields, order="<"):
    """An EXIF blob with the fields (tag, type, count, four bytes of value), all else left out."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entries = b"".join(struct.pack(order + "HHI", *field[:3]) + field[3] for field in fields)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(fields)) + entries + bytes(4)


def turned_by(orientation, order="<"):
    return ORIENTATION, 3, 1, struct.pack(order + "HH", orientation, 0)


def smooth(height, width):
    """A picture that JPEG keeps well, with another colour in each corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = rows * 255 // height, columns * 255 // width, (rows + columns) * 99 // height
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
    ],
)
def test_all_orientations_of_all_formats(file_format, options, orientation):
    """The eight orientations of the EXIF standard, written out as array operations."""
    upright = smooth(32, 48)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(
        Image.fromarray(stored_as(upright, orientation)), file_format, exif=exif, **options
    )
    got = stills.decode(data)
    assert got.shape == upright.shape
    assert stills.image_size(data) == got.shape[:2] == (32, 48)
    error = np.abs(got.astype(int) - upright).max()
    assert error <= (8 if file_format == "JPEG" else 0)
    if file_format == "JPEG":
        assert stills.decode(data, draft_side=16).shape == (16, 24, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("form", [b'tiff:Orientation="%d"', b"<tiff:Orientation>%d</x>"])
def test_orientation_in_xmp(file_format, orientation, form):
    upright = smooth(32, 48)
    image, packet = Image.fromarray(stored_as(upright, orientation)), form % orientation
    if file_format == "PNG":
        data = encode(image)
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        data = data[:33] + chunk + data[33:]
    elif file_format == "TIFF":
        data = encode(image, "TIFF", tiffinfo={700: packet})
    else:
        options = {"lossless": True} if file_format == "WEBP" else {"quality": 95, "subsampling": 0}
        data = encode(image, file_format, xmp=packet, **options)
    got = stills.decode(data)
    assert stills.image_size(data) == got.shape[:2] == (32, 48)
    assert np.abs(got.astype(int) - upright).max() <= (8 if file_format == "JPEG" else 0)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


ODD = {  # fields besides the orientation, as cameras and editors write them
    "signed rational": (RESOLUTION, 10, 1, struct.pack("<I", 38)),
    "text as a resolution": (RESOLUTION, 2, 4, b"abc\0"),
    "double of nothing": (RESOLUTION, 12, 0, bytes(4)),
    "unknown type": (RESOLUTION, 99, 1, bytes(4)),
    "far behind the end": (MAKE, 2, 5, struct.pack("<I", 60_000)),
    "longer than any file": (MAKE, 2, 2**32 - 1, struct.pack("<I", 8)),
    "several where one is meant": (0x0128, 3, 2, struct.pack("<HH", 2, 2)),
    "directory of text": (0x8769, 2, 4, b"abc\0"),
    "directory outside": (0x8825, 4, 1, struct.pack("<I", 2**31)),
}


@pytest.mark.filterwarnings("default")  # Pillow warns of most; an error that is asked for is below
@pytest.mark.parametrize("kind", list(ODD))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_odd_fields_of_exif_do_not_matter(file_format, kind):
    upright = smooth(32, 48)
    plain = stills.decode(encode(Image.fromarray(stored_as(upright, 6)), file_format, quality=95))
    fields = sorted([ODD[kind], turned_by(6)])
    exif = exif_of(*fields) + struct.pack("<ii", -1, 0)
    data = encode(Image.fromarray(stored_as(upright, 6)), file_format, exif=exif, quality=95)
    np.testing.assert_array_equal(stills.decode(data), np.rot90(plain, -1))
    assert stills.image_size(data) == (32, 48)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0", False),
        (b"Exif\0\0II", False),
        (b"Exif\0\0garbage without a header", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (exif_of(turned_by(6))[:-8], False),  # cut within the field
        (exif_of(turned_by(6))[:-4], True),  # cut behind it
        (b"Exif\0\0" + exif_of(turned_by(6)), True),  # two heads
        (exif_of(turned_by(6, ">"), order=">"), True),
        (exif_of((ORIENTATION, 4, 1, struct.pack("<I", 6))), True),  # LONG instead of SHORT
        (exif_of((ORIENTATION, 2, 2, b"6\0\0\0")), False),
        (exif_of(turned_by(0)), False),
        (exif_of(turned_by(9)), False),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_damaged_exif(file_format, exif, turned):
    image = Image.fromarray(smooth(32, 48))
    plain = stills.decode(encode(image, file_format))
    data = encode(image, file_format, exif=exif)
    expected = np.rot90(plain, -1) if turned else plain
    np.testing.assert_array_equal(stills.decode(data), expected)
    assert stills.image_size(data) == expected.shape[:2]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tag", [0x8769, 0x8825])
@pytest.mark.parametrize("place", [-5, 3, 2**31 - 1])
def test_damaged_directories_of_tiff(tag, place):
    """Pillow looks for the EXIF and GPS directories while it loads the pixels of a TIFF."""
    upright = smooth(6, 8)
    data = encode(Image.fromarray(upright), "TIFF", tiffinfo={ORIENTATION: 3, tag: 77})
    field = struct.pack("<HHII", tag, 4, 1, 77)
    assert data.count(field) == 1
    data = data.replace(field, struct.pack("<HHIi", tag, 9, 1, place))
    np.testing.assert_array_equal(stills.decode(data), upright[::-1, ::-1])


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def multi_picture(*entries):
    """The segment of a file of several pictures, with (tag, type, count, value)."""
    fields = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"MPF\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)


DAMAGED = {
    "JFIF without its fields": segment(0xE0, b"JFIF\0"),
    "Adobe without its fields": segment(0xEE, b"Adobe"),
    "pictures without a list": segment(
        0xE2, multi_picture((0xB001, 4, 1, bytes([2, 0, 0, 0])), (0xB002, 7, 4, b"????"))
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_damaged_metadata_of_jpeg(kind):
    plain = encode(Image.fromarray(smooth(32, 48)), "JPEG", exif=exif_of(turned_by(6)))
    expected = stills.decode(plain)
    assert expected.shape == (48, 32, 3)
    data = plain[:2] + DAMAGED[kind] + plain[2:]
    with pytest.raises((struct.error, Image.UnidentifiedImageError, UserWarning)):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(stills.decode(data), expected)
    assert stills.image_size(data) == (48, 32)


@pytest.mark.parametrize("kind", ["long text", "checksum of a text", "long profile"])
def test_damaged_metadata_of_png(kind):
    upright = smooth(32, 48)
    exif = exif_of(turned_by(6))
    plain = encode(Image.fromarray(stored_as(upright, 6)), exif=exif)
    chunk = {
        "long text": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
        "checksum of a text": png_chunk(b"tEXt", b"a\0bc")[:-1] + b"?",
        "long profile": png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3_000_000))),
    }[kind]
    data = plain[:33] + chunk + plain[33:]
    with pytest.raises((ValueError, Image.UnidentifiedImageError)):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(stills.decode(data), upright)
    assert stills.image_size(data) == (32, 48)


def test_metadata_is_dropped_from_no_picture_that_is_cut_short():
    for file_format in ("JPEG", "PNG"):
        data = encode(Image.fromarray(noise(64, 64)), file_format)
        for length in (3, 10, 25, 40, len(data) // 2, len(data) - 30):
            with pytest.raises(BrokenRecord):
                stills.decode(data[:length])


def png16(colour, values, extra=b""):
    """A PNG of 16 bits a channel, [height, width, channel], which Pillow cannot write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts, png_chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("colour", "pixels", "clear", "expected"),
    [
        (2, [[0, 257, 65535], [1000, 2000, 3000]], None, [[0, 1, 255], [3, 7, 11]]),
        (2, [[0, 257, 65535], [1000, 2000, 3000]], (1000, 2000, 3000), [[0, 1, 255], [255] * 3]),
        (6, [[0, 257, 65535, 65535], [1000, 2000, 3000, 0]], None, [[0, 1, 255], [255] * 3]),
        (4, [[257, 65535], [1000, 0]], None, [[1] * 3, [255] * 3]),
        (0, [[257], [1000]], None, [[1] * 3, [4] * 3]),
        (0, [[257], [1000]], (1000,), [[1] * 3, [255] * 3]),
    ],
)
def test_sixteen_bits_a_channel(colour, pixels, clear, expected):
    extra = png_chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    got = stills.decode(png16(colour, np.array([pixels]), extra))
    np.testing.assert_array_equal(got, [expected])


def test_rare_kinds_of_pixels():
    flat = Image.new("RGB", (16, 16), (200, 50, 30))
    white = Image.new("RGB", (16, 16), "white")
    cases = {
        "one bit": (encode(white.convert("1")), 255),
        "one bit TIFF": (encode(white.convert("1"), "TIFF", compression="group4"), 255),
        "CMYK JPEG": (encode(flat.convert("CMYK"), "JPEG", quality=95), [200, 50, 30]),
        "YCbCr TIFF": (encode(flat.convert("YCbCr"), "TIFF"), [200, 50, 30]),
        "two pictures": (
            encode(flat, "MPO", quality=95, save_all=True, append_images=[white]),
            [200, 50, 30],
        ),
        "palette, part transparent": (
            encode(flat.convert("P", palette=Image.Palette.ADAPTIVE), transparency=bytes(256)),
            255,
        ),
    }
    for name, (data, colour) in cases.items():
        got = stills.decode(data)
        assert got.shape == (16, 16, 3), name
        assert np.abs(got.astype(int) - colour).max() <= 2, name


def test_pixels_of_unknown_range_are_refused():
    values = np.array([[0, 257, 65535]], np.int32)
    got = stills.decode(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(got[0, :, 0], [0, 1, 255])
    for value in (65536, -1):
        data = encode(Image.fromarray(np.array([[0, value]], np.int32)), "TIFF")
        with pytest.raises(BrokenRecord, match="32-bit"):
            stills.decode(data)


def empty_png(height, width):
    """A grey PNG of a size, without the memory for it."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = b"".join([png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(b"\0"))])
    return b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IEND", b"")


def test_a_huge_picture_is_a_broken_record():
    with pytest.raises(BrokenRecord, match="exceeds limit"):
        stills.decode(empty_png(20_000, 20_000))
    with pytest.raises(BrokenRecord, match="exceeds limit"):
        stills.image_size(empty_png(20_000, 20_000))


def test_warnings_of_pillow_neither_stop_nor_spam(tmp_path):
    """A picture of 90 million pixels, and one with damaged EXIF; also where warnings are errors."""
    exif = exif_of((0x0128, 3, 2, struct.pack("<HH", 2, 2)), turned_by(6))
    small = Image.fromarray(smooth(32, 48))
    (tmp_path / "odd.jpg").write_bytes(encode(small, "JPEG", exif=exif))
    Image.new("1", (9_000, 10_000)).save(tmp_path / "large.png")
    code = (
        "import pathlib, sys\n"
        "from bsq_jax.data.decoding import stills\n"
        "sizes = [stills.image_size(pathlib.Path(p).read_bytes()) for p in sys.argv[1:]]\n"
        "print(sizes)\n"
        "stills.decode(pathlib.Path(sys.argv[2]).read_bytes())\n"
    )
    files = [str(tmp_path / "large.png"), str(tmp_path / "odd.jpg")]
    for flags in ([], ["-W", "error"]):
        done = subprocess.run(
            [sys.executable, *flags, "-c", code, *files], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[(10000, 9000), (48, 32)]"
        assert not done.stderr
