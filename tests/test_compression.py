"""Pixels to bytes and back. Oracles: the tokenizer's own reconstruction, bits counted by hand."""

import fractions
import io
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from small_codec import TILE, make_codec, picture

from bsq_jax import Codec
from bsq_jax.coding import container
from bsq_jax.coding.tile_prior_coder import TilePriorCoder
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing
from bsq_jax.media.videos import encode_video
from bsq_jax.training.export import load_export, save_export

GOLDEN = pathlib.Path(__file__).parent / "golden" / "codec"
RATE = fractions.Fraction(30000, 1001)


@pytest.fixture(scope="module")
def codec():
    return make_codec()


@pytest.fixture(scope="module")
def variable():
    return make_codec("grids", min_bits=2)


@pytest.mark.parametrize("mode", ["raw", "prior"])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 16), (17, 16), (33, 41), (70, 90)])
def test_pictures_come_back_as_the_tokenizer_makes_them(codec, size, mode):
    frames = picture(*size)
    data = codec.encode(frames, mode=mode)
    decoded = codec.decode(data)
    assert decoded.problem == ""
    np.testing.assert_array_equal(decoded.frames, codec.reconstruct(frames))
    header = decoded.header
    assert (header.mode, header.height, header.width, header.frames) == (mode, *size, 1)
    assert header.rate is None


@pytest.mark.smoke
def test_a_picture_of_one_tile_is_what_the_tokenizer_gives(codec):
    frames = picture(TILE, TILE)
    wanted = codec.tokenizer.reconstruct(frames, dtype="uint8")
    np.testing.assert_array_equal(codec.decode(codec.encode(frames)).frames, wanted)


@pytest.mark.parametrize("mode", ["raw", "prior"])
@pytest.mark.parametrize("time", [1, 2, 9, 60])
def test_clips(codec, time, mode):
    frames = picture(20, 24, time)
    decoded = codec.decode(codec.encode(frames, RATE, mode=mode))
    np.testing.assert_array_equal(decoded.frames, codec.reconstruct(frames))
    assert (decoded.header.frames, decoded.header.rate) == (time, RATE)


def test_times_of_frames(codec):
    """Those of variable rate are kept; of constant rate they follow from it, as ever."""
    frames = picture(16, 16, 5)
    timing = Timing(fractions.Fraction(1000), np.array([33, 33, 34, 1000, 33]))
    data = codec.encode(frames, timing)
    decoded = codec.decode(data)
    np.testing.assert_allclose(decoded.times, [0, 0.033, 0.066, 0.1, 1.1])
    assert decoded.header.timing == timing
    np.testing.assert_array_equal(decoded.frames, codec.reconstruct(frames))
    plain = codec.encode(frames, 25)
    assert (data[8], plain[8]) == (2, 1)
    # A byte each for 33 and 34, two for 1000, their length and checksum.
    assert len(data) - len(plain) == 4 + 2 + 1 + 4 + (len(b"\xe8\x07") - 1)
    np.testing.assert_allclose(codec.decode(plain).times, np.arange(5) / 25)
    assert codec.decode(codec.encode(frames[:1])).times.tolist() == [0]
    with pytest.raises(UserError, match="times of 5 frames for 4"):
        codec.encode(frames[:4], timing)


def test_times_that_are_damaged(codec):
    timing = Timing(fractions.Fraction(1000), np.array([33, 33, 34, 1000, 33]))
    data = codec.encode(picture(16, 16, 5), timing)
    end = len(container.read_header(io.BytesIO(data), "x").pack())
    for place in range(end):
        bad = bytearray(data)
        bad[place] ^= 4
        found, message = whole_frames(codec, bytes(bad))
        assert found is None
        assert message
    found, message = whole_frames(codec, data[: end - 2])
    assert found is None
    assert "cut short" in message


@pytest.mark.parametrize("order", ["raster", "grids"])
def test_files_of_constant_rate_are_as_they_were(order):
    """The files beside the tests were written before there were times."""
    data = (GOLDEN / f"clip_{order}.bsq").read_bytes()
    header = container.read_header(io.BytesIO(data), "x")
    assert data.startswith(header.pack())
    assert data[8] == 1


def test_tiles_of_one_patch_share_what_they_can():
    import tiny
    from small_codec import _drawn, _unboxed

    from bsq_jax.config import finalize
    from bsq_jax.inference.tokenizer import Tokenizer
    from bsq_jax.models.factory import make_tokenizer

    config = tiny.get_config()
    config.model.update(patch_size=16)
    config = finalize(config)
    model = make_tokenizer(config)
    pixels = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), np.float32)
    params = _drawn(_unboxed(jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]), 1, 0)
    codec = Codec(Tokenizer(config, params, {"step": 0}))
    decoded = codec.decode(codec.encode(picture(20, 33)))
    assert decoded.header.overlap == 8


def test_frames_in_every_form(codec, tmp_path):
    frames = picture(12, 20)
    data, made = codec.encode(frames), codec.reconstruct(frames)
    path = tmp_path / "a.png"
    Image.fromarray(frames[0]).save(path)
    chw = frames[0].transpose(2, 0, 1)
    for given, options in (
        (frames[0], {}),
        (path, {}),
        (str(path), {}),
        (Image.open(path), {}),
        ([frames[0]], {}),
        (chw, {"layout": "CHW"}),
        (frames / 127.5 - 1, {}),
        (chw / np.float32(255), {"layout": "CHW", "value_range": (0, 1)}),
    ):
        assert codec.encode(given, **options) == data
        np.testing.assert_array_equal(codec.reconstruct(given, **options), made)
    clip = picture(12, 20, 3)
    coded = codec.encode(clip, RATE)
    assert codec.encode([Image.fromarray(frame) for frame in clip], RATE) == coded
    assert codec.encode(clip.transpose(0, 3, 1, 2), RATE, layout="TCHW") == coded
    assert codec.encode(clip.transpose(0, 3, 1, 2), RATE, layout="CHW") == coded
    film = tmp_path / "a.mkv"
    film.write_bytes(encode_video([clip], fractions.Fraction(25), exact=True))
    found = codec.decode(codec.encode(film))
    np.testing.assert_array_equal(found.frames, codec.reconstruct(clip))
    assert found.header.rate == 25


def test_clips_of_a_video_tokenizer():
    codec = make_codec(frames=3)
    frames = picture(16, 20, 7)
    decoded = codec.decode(codec.encode(frames, RATE)).frames
    np.testing.assert_array_equal(decoded, codec.reconstruct(frames))
    # Its clips have three frames: the first is coded as such.
    tiles = np.stack([frames[:3, :, :16], frames[:3, :, 4:]])
    made = codec.tokenizer.reconstruct(tiles, dtype="uint8")
    np.testing.assert_array_equal(decoded[:3, :, :4], made[0][:, :, :4])
    np.testing.assert_array_equal(decoded[:3, :, 16:], made[1][:, :, 12:])


def test_fewer_bits(variable):
    frames = picture(40, 40)
    sizes = []
    for bits in variable.variable_bits:
        for mode in ("raw", "prior"):
            data = variable.encode(frames, bits=bits, mode=mode)
            decoded = variable.decode(data)
            assert decoded.header.bits == bits
            np.testing.assert_array_equal(decoded.frames, variable.reconstruct(frames, bits=bits))
            if mode == "raw":
                sizes.append(len(data))
    assert np.diff(sizes).tolist() == [16 * 4 // 8] * 4  # 16 tiles of four tokens


def test_size_in_raw_mode_is_that_of_the_bits_and_a_small_header(codec):
    data = codec.encode(picture(40, 40), mode="raw", overlap=0)
    assert len(data) <= -(-9 * 4 * 6 // 8) + 64


def test_size_with_the_prior_is_its_cross_entropy(codec):
    frames = picture(200, 200, 4)
    data = codec.encode(frames, RATE, mode="prior", overlap=0)
    tiles = 13 * 13
    bits = codec.tokenizer.encode(
        np.stack([
            np.pad(frame, ((0, 0), (0, 0), (0, 0)))[y : y + 16, x : x + 16]
            for frame in frames
            for y in [i * 184 // 12 for i in range(13)]
            for x in [i * 184 // 12 for i in range(13)]
        ])
    )  # fmt: skip
    signs = 2.0 * bits.reshape(4, tiles, 2, 2, 6).swapaxes(0, 1) - 1
    model_logits = jax.jit(lambda s: PriorModelOf(codec).apply({"params": codec._prior[1]}, s))(
        signs.astype(np.float32)
    )
    cost = np.log2(1 + np.exp(-signs * np.asarray(model_logits, np.float64) / 64)).sum() / 8
    assert cost <= len(data) + 1
    assert len(data) <= 1.01 * cost + 64


def PriorModelOf(codec):  # noqa: N802
    from bsq_jax.models.factory import make_prior

    return make_prior(codec._prior[0])


# --- agreement ---


@pytest.mark.usefixtures("eight_devices")
def test_the_same_file_whatever_is_computed_together(codec, monkeypatch):
    frames = picture(70, 70, 2)
    data = codec.encode(frames, RATE)
    monkeypatch.setattr("bsq_jax.coding.tile_prior_coder._MOST_TILES", 4)
    again = make_codec()  # another number of tiles at once, and so another order of the bits
    other = again.encode(frames, RATE)
    assert other != data
    np.testing.assert_array_equal(again.decode(other).frames, codec.reconstruct(frames))
    monkeypatch.undo()
    with jax.default_device(jax.devices()[3]):
        assert make_codec().encode(frames, RATE) == data
    with jax.disable_jit():
        tiny_frames = frames[:1, :20, :20]
        assert codec.encode(tiny_frames) == make_codec().encode(tiny_frames)


_DECODE = """
import sys
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
from small_codec import make_codec
for name in sys.argv[1:]:
    codec = make_codec(name.split("_")[-1].split(".")[0])
    data = open(name, "rb").read()
    import io
    from bsq_jax.coding.container import read_chunks, read_header
    file = io.BytesIO(data)
    header = read_header(file, name)
    codec.decode(data)  # says so if the bits differ from their checksum
    print(name, header.frames, jax.__version__)
"""


def other_python():
    """Another Python that has this package's requirements, if the environment names one."""
    return os.environ.get("BSQ_JAX_OTHER_PYTHON", "")


@pytest.mark.smoke
@pytest.mark.parametrize("order", ["raster", "grids"])
def test_files_of_another_release_of_jax(order):
    """The files kept beside the tests were written with jax 0.10; the checksum is of their bits."""
    data = (GOLDEN / f"clip_{order}.bsq").read_bytes()
    decoded = make_codec(order).decode(data)
    assert decoded.problem == ""
    assert decoded.frames.shape == (5, 60, 44, 3)


@pytest.mark.smoke
def test_files_from_another_process(tmp_path):
    """With one thread and two devices; and if the environment names one, by another Python."""
    names = []
    for order in ("raster", "grids"):
        path = tmp_path / f"clip_{order}.bsq"
        path.write_bytes(make_codec(order).encode(picture(60, 44, 3), RATE))
        names.append(str(path))
    tests = pathlib.Path(__file__).parent
    environment = dict(os.environ, PYTHONPATH=str(tests.parent))
    environment["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2 "
        "--xla_cpu_multi_thread_eigen=false"
    )
    code = _DECODE.format(tests=str(tests), cache=jax.config.jax_compilation_cache_dir)
    python = other_python() or sys.executable
    ran = subprocess.run(
        [python, "-c", code, *names], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(" 3 ") == 2
    if other_python():
        assert not ran.stdout.strip().endswith(jax.__version__)


# --- mistakes ---


@pytest.mark.parametrize(
    ("frames", "settings", "said"),
    [
        (np.full((2, 4, 4, 3), 7.0), {}, "float pixels must lie in"),
        (np.zeros((2, 2, 4, 4, 3), np.uint8), {}, "one picture or video at a time"),
        (np.zeros((3, 4, 4), np.uint8), {}, "say layout='CHW'"),
        ("no/such.png", {}, "no/such.png does not exist"),
        (__file__, {}, "no picture or video that can be read"),
        ([], {}, "an empty list of frames"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)],
            {},
            "must have one size, not 4x4 and 5x4",
        ),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, "must be uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), {}, "picture of 2 frames"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"rate": 0}, "rate of 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"rate": 29.97}, "cannot be written"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"rate": float("nan")}, "give a number"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"bits": 7}, "7 bits a token"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"bits": 5}, "model.min_bits"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"overlap": 9}, "overlap of 9"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"mode": "fast"}, "one of prior, raw"),
    ],
)
def test_mistakes(codec, frames, settings, said):
    with pytest.raises(UserError, match=said):
        codec.encode(frames, **settings)


def test_other_models_are_told_apart(codec):
    frames = picture(20, 20)
    raw, coded = codec.encode(frames, mode="raw"), codec.encode(frames)
    alone = make_codec(prior=False)
    np.testing.assert_array_equal(alone.decode(raw).frames, codec.reconstruct(frames))
    with pytest.raises(UserError, match="was coded with a prior"):
        alone.decode(coded)
    for other in (make_codec(seed=5), make_codec("grids")):
        with pytest.raises(UserError, match="by another model"):
            other.decode(coded)
    with pytest.raises(UserError, match="by another model"):
        make_codec(seed=5).decode(raw)
    with pytest.raises(UserError, match="has no prior"):
        alone.encode(frames, mode="prior")


def test_exports(codec, tmp_path):
    frames = picture(20, 20)
    codec.save(tmp_path / "codec")
    again = Codec.load(tmp_path / "codec")
    assert again.has_prior
    assert again.encode(frames) == codec.encode(frames)
    alone = make_codec(prior=False)
    alone.save(tmp_path / "alone")
    assert Codec.load(tmp_path / "alone").encode(frames) == alone.encode(frames)
    with pytest.raises(UserError, match="does not exist"):
        Codec.load(tmp_path / "gone")


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_exports_say_which_weights_they_hold(which, tmp_path):
    whole, origin = make_codec(), {"weights": which, "step": 7}
    codec = Codec(whole.tokenizer, whole._prior, origin=origin)
    codec.save(tmp_path / "one")
    Codec.load(tmp_path / "one").save(tmp_path / "two")
    for name in ("one", "two"):
        _, weights, found = load_export(tmp_path / name)
        assert (list(weights), found) == ([which], origin)
    # As exports were: always called ema, of unknown origin. They code the same.
    save_export(tmp_path / "one", whole._prior[0], {"ema": whole._prior[1]}, origin={})
    old, new = (Codec.load(tmp_path / name) for name in ("one", "two"))
    assert old.fingerprint("prior") == new.fingerprint("prior") == whole.fingerprint("prior")


def test_a_prior_for_other_tokens_is_refused():
    one, other = make_codec(), make_codec(prior=False)
    config, params = one._prior
    config = config.copy_and_resolve_references()
    config.model.bits = 5
    with pytest.raises(UserError, match="of 5 bits"):
        Codec(other.tokenizer, (config, params))


# --- damage ---


def whole_frames(codec, data):
    """``(frames, message)``: what a reader gets, and what it is told; never anything else."""
    try:
        decoded = codec.decode(data, "x.bsq")
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert message
        return None, message
    return decoded.frames, decoded.problem


@pytest.fixture(scope="module")
def clip(codec):
    """A clip of several chunks, its bytes with and without the prior, and what is right."""
    frames = picture(150, 150, 20)
    wanted = codec.reconstruct(frames)
    return {mode: codec.encode(frames, RATE, mode=mode) for mode in ("raw", "prior")}, wanted


def chunk_ends(data):
    """Where chunks end, and how many frames are whole there."""
    file = io.BytesIO(data)
    header = container.read_header(file, "x")
    ends, frames = [(file.tell(), 0)], 0
    for chunk in container.read_chunks(file, header, "x", lambda _: 10**9):
        frames += chunk.frames
        ends.append((file.tell(), frames))
    return ends


@pytest.mark.parametrize("mode", ["raw", "prior"])
def test_a_file_cut_short_gives_its_whole_frames(codec, clip, mode):
    data, wanted = clip[0][mode], clip[1]
    ends = chunk_ends(data)
    assert len(ends) > 2
    for end, frames in ends[:-1]:
        for cut in (end, end + 1, end + 40):
            found, message = whole_frames(codec, data[:cut])
            assert "cut short" in message
            if frames:
                np.testing.assert_array_equal(found, wanted[:frames])
                assert f"{frames} of 20" in message
            else:
                assert found is None


@pytest.mark.parametrize("mode", ["raw", "prior"])
def test_a_thousand_corruptions(codec, clip, mode):
    """500 for each mode, on a small clip: an error, or the frames before; never wrong pixels."""
    frames = picture(17, 33, 12)
    wanted = codec.reconstruct(frames)
    data = codec.encode(frames, RATE, mode=mode)
    random = np.random.default_rng(7)
    header = container.read_header(io.BytesIO(data), "x")
    size = len(header.pack())
    kinds = ("flip", "flips", "cut", "zeros", "insert", "field", "swap", "junk")
    seen = dict.fromkeys(kinds, 0)
    for number in itertools.count():
        if sum(seen.values()) == 500:
            break
        kind = kinds[number % len(kinds)]
        bad = bytearray(data)
        if kind in ("flip", "flips"):
            for _ in range(1 if kind == "flip" else 20):
                bad[random.integers(len(bad))] ^= 1 << random.integers(8)
        elif kind == "cut":
            del bad[random.integers(len(bad)) :]
        elif kind == "zeros":
            start = random.integers(len(bad))
            count = min(int(random.integers(1, 40)), len(bad) - start)
            bad[start : start + count] = bytes(count)
        elif kind == "insert":
            start = random.integers(len(bad) + 1)
            bad[start:start] = random.bytes(int(random.integers(1, 9)))
        elif kind == "field":  # with a checksum that is right
            fields = {f: getattr(header, f) for f in header.__dataclass_fields__}
            name = ("height", "width", "frames", "bits", "overlap")[random.integers(5)]
            fields[name] = int(random.integers(0, 5000) if number % 3 else random.integers(0, 20))
            try:
                bad = bytearray(container.Header(**fields).pack() + data[size:])
            except UserError:
                continue
        elif kind == "swap":
            fields = {f: getattr(header, f) for f in header.__dataclass_fields__}
            fields["height"], fields["width"] = fields["width"], fields["height"]
            fields["mode"] = ("raw", "prior")[random.integers(2)]
            fields["fingerprint"] = codec.fingerprint(fields["mode"])
            bad = bytearray(container.Header(**fields).pack() + data[size:])
        else:
            bad = bytearray(random.bytes(int(random.integers(0, 300))))
        if bytes(bad) == data:
            continue
        seen[kind] += 1
        found, message = whole_frames(codec, bytes(bad))
        assert message, (kind, number)
        if found is not None:
            np.testing.assert_array_equal(found, wanted[: len(found)])
    assert min(seen.values()) > 25


def test_files_of_other_kinds(codec):
    for start, said in (
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "is a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG picture"),
        (b"\0\0\0\x20ftypisom" + bytes(50), "is an MP4"),
        (b"hello, world, this is text", "is no .bsq file"),
        (bytes(5000), "is no .bsq file"),
    ):
        found, message = whole_frames(codec, start)
        assert found is None
        assert said in message


def test_a_forged_file_with_right_checksums_is_found_out(codec):
    """Whoever knows the format can make checksums right; the bits still have theirs."""
    frames = picture(16, 16)
    file = io.BytesIO(codec.encode(frames))
    header = container.read_header(file, "x")
    (chunk,) = container.read_chunks(file, header, "x", lambda _: 10**9)
    for payload in (b"", bytes(4), b"\xff" * 4, b"\xff" * 40, b"abc", chunk.payload[:-4]):
        if payload == chunk.payload:
            continue
        forged = chunk._replace(payload=payload)
        found, message = whole_frames(codec, header.pack() + container.pack_chunk(forged, header))
        assert found is None
        assert "is damaged" in message


def test_claims_cost_nothing(codec):
    """Sizes that a header or a chunk claims are not believed before there are as many bytes."""
    import tracemalloc

    raw = container.Header(
        mode="raw", fingerprint=codec.fingerprint("raw"), height=8000, width=8000, frames=2**24,
        rate=RATE, bits=6, overlap=0,
    )  # fmt: skip
    prior = container.Header(
        mode="prior", fingerprint=codec.fingerprint("prior"), height=60000, width=60000,
        frames=1, rate=None, bits=6, overlap=0,
    )  # fmt: skip
    chunk = bytes([0x80, 0x80, 0x80, 0x08, 0xFF, 0xFF, 0xFF, 0x7F]) + bytes(20)
    tracemalloc.start()
    for header in (raw, prior):
        found, message = whole_frames(codec, header.pack() + chunk)
        assert found is None
        assert message
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_programs_are_few(codec):
    coder = codec._coder
    assert isinstance(coder, TilePriorCoder)
    before = coder._advance._cache_size()
    for size in ((16, 16), (16, 17), (16, 40), (33, 33)):
        codec.decode(codec.encode(picture(*size)))
    assert coder._advance._cache_size() - before <= 4
