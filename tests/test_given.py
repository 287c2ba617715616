"""What the API takes, and tokens as integers. Oracle: batches uint8 NHWC; integers of Python."""

import functools
import importlib.util
import pathlib
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from user_errors import message_of

from bsq_jax.config import finalize, load_config_file
from bsq_jax.inference import token_ids
from bsq_jax.inference.layouts import arranged, canonical
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.videos import write_mp4
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.quantizers.layout import TokenLayout

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@functools.cache
def make(frames=1, image_size=(16, 24)):
    config = load_config_file(TINY)
    config.model.update(frames=frames, image_size=image_size)
    config = finalize(config)
    pixels = jnp.zeros((1, frames, *image_size, 3))
    params = jax.jit(make_tokenizer(config).init)(jax.random.key(1), pixels)["params"]
    # Kernels of the start are small; larger ones tell pictures apart.
    return Tokenizer(config, jax.tree.map(lambda leaf: np.asarray(leaf) * 3, nn.meta.unbox(params)))


@pytest.fixture(scope="module")
def tokenizer():
    return make()


@pytest.fixture(scope="module")
def video():
    return make(frames=3)


def images(*leading, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*leading, 16, 24, 3), np.uint8)


def equal(found, wanted):
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, wanted, strict=True)


class Tensor:
    """What of a tensor of PyTorch is used; it refuses what that refuses."""

    def __init__(self, array, dtype, *, grad=True, device="cuda"):
        self.array, self.dtype, self.grad, self.device = array, f"torch.{dtype}", grad, device

    def detach(self):
        return Tensor(self.array, self.dtype[6:], grad=False, device=self.device)

    def cpu(self):
        return Tensor(self.array, self.dtype[6:], grad=self.grad, device="cpu")

    def float(self):
        return Tensor(self.array, "float32", grad=self.grad, device=self.device)

    def numpy(self):
        if self.grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array.astype(self.dtype[6:])

    def __array__(self, *_, **__):
        raise TypeError("Got unsupported ScalarType BFloat16")


def test_one_picture_in_every_form(tokenizer, tmp_path):
    pixels = images(3)
    bits = tokenizer.encode(pixels)
    picture, wanted = pixels[1], bits[1]
    path = tmp_path / "a picture.png"
    Image.fromarray(picture).save(path)
    chw = np.ascontiguousarray(picture.transpose(2, 0, 1))
    floats = picture / np.float32(127.5) - 1
    for given, options in (
        (picture, {}),
        (str(path), {}),
        (path, {}),
        (Image.open(path), {}),
        (Image.fromarray(picture), {}),
        (jnp.asarray(picture), {}),
        (chw, {"layout": "CHW"}),
        (chw, {"layout": "chw"}),
        (jnp.asarray(chw), {"layout": "CHW"}),
        (floats, {}),
        (floats.tolist(), {}),
        (Tensor(chw, "uint8"), {"layout": "CHW"}),
        (Tensor(chw / np.float32(255), "float32"), {"layout": "CHW", "value_range": (0, 1)}),
        (Tensor(chw.astype(np.float32), "bfloat16"), {"layout": "CHW", "value_range": (0, 255)}),
    ):
        equal(tokenizer.encode(given, **options), wanted)
        (listed,) = tokenizer.encode([given], **options)
        equal(listed, wanted)
    decoded = tokenizer.decode(bits)[1]
    np.testing.assert_allclose(tokenizer.decode(wanted), decoded, atol=1e-5)
    for form in (wanted.tolist(), jnp.asarray(wanted), Tensor(wanted, "int64")):
        equal(tokenizer.decode(form), tokenizer.decode(wanted))
    # The result has the layout of the input.
    equal(tokenizer.reconstruct(chw, layout="CHW"), tokenizer.decode(wanted).transpose(2, 0, 1))
    equal(tokenizer.reconstruct(path), tokenizer.decode(wanted))
    nchw = tokenizer.reconstruct(pixels.transpose(0, 3, 1, 2), layout="NCHW", dtype="uint8")
    equal(nchw, tokenizer.decode(bits, dtype="uint8").transpose(0, 3, 1, 2))
    equal(tokenizer.decode(bits, dtype="uint8", layout="CHW"), nchw)


def test_a_list_gives_a_list(tokenizer, tmp_path):
    pixels = images(5)
    bits = tokenizer.encode(pixels)
    path = tmp_path / "a.png"
    Image.fromarray(pixels[0]).save(path)
    floats = pixels[3:] / np.float32(127.5) - 1
    found = tokenizer.encode((path, Image.fromarray(pixels[1]), pixels[2], floats))
    assert isinstance(found, list)
    for one, wanted in zip(found, (bits[0], bits[1], bits[2], bits[3:]), strict=True):
        equal(one, wanted)
    decoded = tokenizer.decode(found, dtype="uint8")
    assert [each.shape for each in decoded] == [(16, 24, 3)] * 3 + [(2, 16, 24, 3)]
    again = tokenizer.reconstruct([*pixels[:3], floats], dtype="uint8")
    for one, other in zip(decoded, again, strict=True):
        equal(one, other)
    assert tokenizer.encode([]) == tokenizer.decode([]) == []
    wrong = [pixels[0], np.zeros((0, 24, 3), np.uint8)]
    assert message_of(tokenizer.encode, wrong).startswith(
        "number 1 (from 0) of the list: a picture of 0x24 pixels (height x width)"
    )
    with pytest.warns(UserWarning, match="value_range") as told:
        tokenizer.encode([pixels[0] / 255, pixels[1] / 255])
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_pil_images_of_every_mode(tokenizer, mode, tmp_path):
    """Transparency is on white; those that PNG holds are as the file is read."""
    image = Image.fromarray(images()).convert("L" if "I" in mode else "RGB")
    if mode == "RGBA":
        image.putalpha(Image.fromarray(images(seed=1)[..., 0]))
    elif "I" in mode:
        image = Image.fromarray(np.asarray(image).astype("u2" if "16" in mode else "i4") * 257)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    before = image.tobytes(), dict(image.info)
    found = tokenizer.encode(image)
    assert (image.tobytes(), dict(image.info)) == before
    if mode in ("CMYK", "YCbCr", "HSV"):
        equal(found, tokenizer.encode(np.asarray(image.convert("RGB"))))
    else:
        path = tmp_path / ("a.tiff" if mode == "I" else "a.png")
        image.save(path)
        equal(found, tokenizer.encode(path))
    if mode == "RGBA":
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image)
        equal(found, tokenizer.encode(np.asarray(on_white.convert("RGB"))))


def test_pil_images_are_turned_as_their_metadata_say(tokenizer, tmp_path):
    pixels = images()
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    for name in ("a.png", "a.tiff"):
        path = tmp_path / name
        Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
        for given in (path, Image.open(path)):
            equal(tokenizer.encode(given), tokenizer.encode(pixels))


def test_grey_arrays(tokenizer):
    grey = images()[..., 0]
    wanted = tokenizer.encode(np.stack([grey] * 3, axis=-1))
    for given, layout in ((grey, None), (grey[..., None], None), (grey[None], "CHW"), (grey, "HW")):
        equal(tokenizer.encode(given, layout=layout), wanted)
    equal(tokenizer.encode(grey[None], layout="NHW"), wanted[None])


def test_clips_in_every_form(video, tmp_path):
    clips = images(2, 3)
    bits = video.encode(clips)
    alone = bits[:1]
    for axes in ("NTHWC", "NTCHW", "NCTHW", "TNHWC", "BTHWC"):
        order = ["NTHWC".index(axis) for axis in axes.replace("B", "N")]
        equal(video.encode(clips.transpose(order), layout=axes), bits)
        rearranged = video.reconstruct(clips.transpose(order), layout=axes)
        equal(rearranged, video.decode(bits).transpose(order))
    equal(video.encode(clips.transpose(0, 1, 4, 2, 3), layout="CHW"), bits)
    # Tokens of a clip always have a batch: without, they would be those of a batch of pictures.
    equal(video.encode(clips[0], layout="THWC"), alone)
    equal(video.encode(clips[0].transpose(3, 0, 1, 2), layout="CTHW"), alone)
    pictures = video.encode(clips[0], layout="NHWC")
    equal(pictures, np.stack([video.encode(frame) for frame in clips[0]]))
    with pytest.warns(UserWarning, match="layout='NHWC' or, for a clip, layout='THWC'"):
        equal(video.encode(clips[0]), pictures)
    first, second = video.encode([clips[:1], clips[0, 0]])
    equal(first, alone)
    equal(second, pictures[0])
    # A file of a video is a clip.
    path = tmp_path / "a.mp4"
    write_mp4(path, clips[0])
    found = video.encode(path)
    assert found.shape == alone.shape
    equal(video.decode(found), video.reconstruct(str(path)))
    write_mp4(path, np.concatenate([*clips]))
    assert message_of(video.encode, path).startswith("a clip of 6 frames: this model has learned")
    assert "this model takes 1 frame" in message_of(make().encode, path)


def test_streams_take_the_same(video):
    clip = images(3)
    bits = video.encode(clip[None])[0]
    stream = video.stream()
    forms = (clip[0], Image.fromarray(clip[1]), [clip[2].transpose(2, 0, 1)])
    first, second = (stream.encode(form) for form in forms[:2])
    (third,) = stream.encode(forms[2], layout="CHW")
    for found, wanted in zip((first, second, third), bits, strict=True):
        equal(found, wanted)
    decoded = stream.decode(first)
    assert decoded.shape == (16, 24, 3)
    several = video.stream(batch=2)
    pair = several.encode([clip[0], clip[1] / 127.5 - 1])
    equal(pair[0], bits[0])
    assert isinstance(several.decode(pair), list)
    assert several.encoded == 1
    assert "an empty list" in message_of(several.encode, [])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (np.zeros((3, 16, 24), np.uint8), {}, "the channels come first: say layout='CHW'"),
        (np.zeros((2, 3, 16, 24), np.uint8), {}, "say layout='NCHW'"),
        (np.zeros((2, 9, 3, 16, 24), np.uint8), {}, "say layout='NTCHW'"),
        (np.zeros((2, 3, 9, 16, 24), np.uint8), {}, "say layout='NCTHW'"),
        (np.zeros((16, 24, 4), np.uint8), {}, "with 4 channels: drop the transparency"),
        (np.zeros((16, 24, 7), np.uint8), {}, "with 7 channels: give a picture [height"),
        (np.zeros((16, 24, 3), np.uint8), {"layout": "CHW"}, "with 16 channels"),
        (np.zeros((16, 24, 3), np.uint8), {"layout": "HWX"}, "layout='HWX': name each axis once"),
        (np.zeros((16, 24, 3), np.uint8), {"layout": "HWCC"}, "name each axis once"),
        (np.zeros((16, 24, 3), np.uint8), {"layout": 3}, "name each axis once"),
        (np.zeros((16, 24, 3), np.uint8), {"layout": "NHWC"}, "of 3 axes, which layout='NHWC'"),
        (np.zeros((512, 0, 3), np.uint8), {}, "a picture of 512x0 pixels (height x width)"),
        (
            np.zeros((800, 700, 3), np.uint8),
            {},
            "a picture of 800x700 pixels (height x width) has 100x88 tokens, and with attention "
            "over whole frames this model computes at most 8,192 tokens at once: use bsq_jax.Codec",
        ),
        (np.zeros((1, 2, 16, 24, 3), np.uint8), {}, "a clip of 2 frames: this model takes 1"),
        (np.zeros((16, 24, 3), np.int64), {}, "pixels are int64: give uint8"),
        (None, {}, "pixels are of type NoneType, not an array of numbers: give a picture [height"),
        (
            (x for x in "ab"),
            {},
            "are of type generator, not an array of numbers: give list(...) of it",
        ),
        ({"image": 3}, {}, "pixels are of type dict"),
        (np.array(["a.png"]), {}, "pixels are of type numpy.ndarray, not an array of numbers"),
        ([[1, 2], [3]], {}, "pixels of type list cannot be read as an array"),
        (Image.new("F", (24, 16)), {}, "a PIL image of mode F: floating-point pixels have no"),
        ("no/such.png", {}, "no/such.png does not exist"),
        (".", {}, ". is a folder: give a file, or a list of files such as sorted("),
        (__file__, {}, "is no picture or video that can be read: not a picture of a known format"),
        ("gs://bucket/a.png", {}, "mount the bucket"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(tokenizer, given, options, words):
    assert words in message_of(tokenizer.encode, given, **options)


def test_mistakes_in_files(tokenizer, tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (700, 800)).save(path)
    assert message_of(tokenizer.encode, path).startswith(f"{path} of 800x700 pixels (height x wid")
    closed = Image.open(path)
    closed.close()
    assert "a PIL image cannot be read" in message_of(tokenizer.encode, closed)
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path} is no picture or video" in message_of(tokenizer.encode, path)
    with Image.open(path) as opened:
        assert "a PIL image cannot be read" in message_of(tokenizer.encode, opened)


def test_layouts_there_and_back():
    array = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    for layout in ("NTHWC", "CTNWH", "WHCTN"):
        found, axes = canonical(array, layout, "")
        assert axes == "NT"
        equal(arranged(found, layout), array)
    single, axes = canonical(array[0, 0], "CHW", "")
    assert (single.shape, axes) == ((1, 1, 5, 6, 4), "")
    equal(arranged(single[0, 0], "NTCHW"), array[0, 0])
    assert arranged(single[0], "THWC").shape == (1, 5, 6, 4)  # a batch stays in front


def python_ints(bits, sizes):
    """Each token's bits as integers of Python: lists of lists."""
    found = []
    for token in np.asarray(bits).reshape(-1, bits.shape[-1]).tolist():
        text, words = "".join(map(str, token)), []
        for size in sizes:
            words.append(int(text[:size], 2))
            text = text[size:]
        assert not text
        found.append(words)
    return found


@pytest.mark.parametrize(
    ("length", "group_size", "sizes"),
    [
        (1, None, [1]),
        (18, None, [18]),
        (62, None, [62]),
        (63, None, [32, 31]),
        (72, None, [36, 36]),
        (130, None, [44, 44, 42]),
        (18, 9, [9, 9]),
        (36, 14, [14, 14, 8]),
        (36, 36, [36]),
        (100, 62, [62, 38]),
    ],
)
def test_ids_are_the_integers_of_the_bits(length, group_size, sizes):
    layout = TokenLayout(1, length, 2**length)
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, length), np.uint8)
    bits[0, 0], bits[0, 1] = 0, 1
    ids = token_ids.to_ids(bits, layout, (length,), group_size)
    assert ids.dtype == np.int64
    alone = group_size is None and len(sizes) == 1
    assert ids.shape == ((2, 3) if alone else (2, 3, len(sizes)))
    assert ids.reshape(-1, len(sizes)).tolist() == python_ints(bits, sizes)
    for form in (ids, ids.tolist(), ids.astype(np.uint64)):
        equal(token_ids.from_ids(form, layout, length, group_size), bits)


def test_ids_where_bits_name_codes():
    # FSQ, VQ, Leech: the number of the code, less than their number.
    layout = TokenLayout(1, 5, 20)
    codes = np.arange(20)
    bits = token_ids.from_ids(codes, layout, 5, None)
    equal(token_ids.to_ids(bits, layout, (5,), None), codes)
    assert "1 of 20 tokens name no code, the first at [19]" in message_of(
        token_ids.from_ids, codes + 1, layout, 5, None
    )
    assert "name no code" in message_of(token_ids.to_ids, np.ones(5, int), layout, (5,), None)
    # Residual: the first stage in front; a group a stage is the number of each code.
    layout = TokenLayout(2, 3, 5)
    stages = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1)
    bits = token_ids.from_ids(stages, layout, 6, 3)
    whole = token_ids.to_ids(bits, layout, (3, 6), None)
    equal(whole, stages[..., 0] * 8 + stages[..., 1])
    assert len(np.unique(whole)) == 25
    equal(token_ids.to_ids(bits[..., :3], layout, (3, 6), None), stages[..., 0])


def test_ids_of_a_tokenizer(tokenizer):
    bits = tokenizer.encode(images(2))
    ids = tokenizer.ids(bits)
    assert ids.shape == bits.shape[:-1]
    assert ids.reshape(-1, 1).tolist() == python_ints(bits, [6])
    equal(tokenizer.bits(ids), bits)
    equal(tokenizer.bits(Tensor(ids, "int64")), bits)
    equal(tokenizer.ids(jnp.asarray(bits[0])), ids[0])
    equal(tokenizer.decode(tokenizer.bits(ids[0])), tokenizer.decode(bits[0]))
    equal(tokenizer.bits(tokenizer.ids(bits, group_size=4), group_size=4), bits)
    one, other = tokenizer.ids([bits[0], bits])
    equal(one, ids[0])
    equal(other, ids)
    equal(tokenizer.bits([one, other])[0], bits[0])
    for call, words in (
        (lambda: tokenizer.bits(ids + 64), "integers of 6 bits are in [0, 64)"),
        (lambda: tokenizer.bits(ids - 64), "ids reach from -"),
        (lambda: tokenizer.bits(ids * 1.0), "ids are float64: give integers"),
        (lambda: tokenizer.bits(ids, group_size=4), "the last axis must be 2"),
        (lambda: tokenizer.bits(ids, length=5), "tokens of this model have 6"),
        (lambda: tokenizer.ids(ids), "the last axis must be the 6 bits of a token"),
        (lambda: tokenizer.ids(bits + 1), "all 0 or 1"),
        (lambda: tokenizer.ids(bits, group_size=0), "group_size=0: give 1 to 6"),
        (lambda: tokenizer.ids(bits, group_size=2.0), "give a whole number from 1 to 6"),
    ):
        assert words in message_of(call)


@pytest.mark.parametrize("section", ["Tokenizer", "Codec"])
def test_the_page_of_the_python_api_runs(section, tmp_path, monkeypatch):
    """Each line of a section; arrays are what the comments behind them say."""
    monkeypatch.chdir(tmp_path)
    config = load_config_file("quickstart")
    config.model.update(width=16, layers=1, heads=2)
    config = finalize(config)
    pixels = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(make_tokenizer(config).init, jax.random.key(0), pixels)["params"]
    drawn = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(drawn.normal(0, 0.1, leaf.shape)), nn.meta.unbox(shapes)
    )
    for name in ("quickstart", "prior"):  # a codec takes a tokenizer alone as well
        Tokenizer(config, params, {"step": 1}).save(f"runs/{name}")
    text = (pathlib.Path(__file__).parents[1] / "docs/python_api.md").read_text()
    text = text.split(f"## {section}\n")[1].split("\n## ")[0]
    names, checked = {}, 0
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "import torch" in block and importlib.util.find_spec("torch") is None:
            continue
        for line in block.splitlines():
            exec(line, names)
            said = re.match(r"(\w+) = .*# (uint8|int64|float32) [a-z ]*\[([\d, ]+)\]", line)
            if said:
                found = names[said[1]]
                assert f"{found.dtype} {list(found.shape)}" == f"{said[2]} [{said[3]}]", line
                checked += 1
    assert checked >= {"Tokenizer": 6, "Codec": 1}[section]


def test_nothing_warns_that_is_stated(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(images() / 255, value_range=(0, 1))
