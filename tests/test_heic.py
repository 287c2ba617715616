"""HEIC pictures, with pillow-heif and without. Oracle: what pillow-heif was given to write."""

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding import file_kinds, heic, stills
from bsq_jax.data.decoding.record_frames import is_video, looks_like_video, open_record
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.data.sources import make_source

# What a HEIC file of a phone begins with.
HEAD = b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)


def without_plugin(*lines):
    """What a program prints where pillow-heif is not installed."""
    program = "\n".join(("import sys", "sys.modules['pillow_heif'] = None", *lines))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_the_first_bytes_of_heic_are_no_video():
    assert heic.is_heic(HEAD)
    assert not looks_like_video(HEAD)
    for brand in (b"isom", b"mp42", b"qt  ", b"avif"):
        assert not heic.is_heic(HEAD[:8] + brand + HEAD[12:])
        assert looks_like_video(HEAD[:8] + brand + HEAD[12:])
    with pytest.raises(BrokenRecord), open_record(Record("a", HEAD)) as opened:
        [render() for _, render in opened.frames([0])]


def test_without_the_plugin_one_line_says_what_to_install(tmp_path):
    for name in ("1.heic", "2.HEIF"):
        (tmp_path / name).write_bytes(HEAD)
    printed = without_plugin(
        "from bsq_jax.core.errors import UserError",
        "from bsq_jax.data.decoding import stills",
        "from bsq_jax.data.records import BrokenRecord",
        "from bsq_jax.data.sources import make_source",
        "try:",
        f"    make_source('folder:{tmp_path}', 'train')",
        "except UserError as error:",
        "    print(error)",
        "try:",
        f"    stills.decode({HEAD!r})",
        "except BrokenRecord as error:",
        "    print(error)",
    )
    assert printed == (
        f"folder:{tmp_path} holds no pictures: it holds 2 files of kinds that are not read: "
        ".heic (1), .heif (1); HEIC is read after `pip install pillow-heif`; convert them to PNG, "
        "or to MP4\n"
        "a HEIC picture; HEIC is read after `pip install pillow-heif`\n"
    )


def test_other_kinds_have_no_hint(tmp_path):
    (tmp_path / "1.jxl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.jxl \(1\); convert"):
        make_source(f"folder:{tmp_path}", "train")


@pytest.mark.skipif(
    importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed"
)
def test_with_the_plugin_pictures_are_read(tmp_path):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 24:] = (200, 40, 90)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "HEIF", quality=-1, chroma=444, matrix_coefficients=0)
    assert heic.is_heic(stream.getvalue())
    assert heic.EXTENSIONS <= file_kinds.IMAGE_EXTENSIONS
    for name in ("a.heic", "b.HEIF", "c.hif"):
        (tmp_path / name).write_bytes(stream.getvalue())
    (tmp_path / "d.heic").write_bytes(stream.getvalue()[:200])
    source = make_source(f"folder:{tmp_path}", "train", divide=False)
    assert len(source) == 4
    for index in range(3):
        assert not is_video(source[index])
        assert stills.image_size(source[index].content) == (32, 48)
        np.testing.assert_array_equal(stills.decode(source[index].content), pixels)
    with pytest.raises(BrokenRecord):
        stills.decode(source[3].content)
