"""Frames of any size, as a whole or in chosen tiles. Oracle: the tokenizer's bits and pixels."""

import io
import itertools

import numpy as np
import pytest
from small_codec import TILE, make_codec, picture

from bsq_jax.coding import coding_choice, container
from bsq_jax.coding.container import NATIVE
from bsq_jax.coding.tiles import Tiles
from bsq_jax.core import once
from bsq_jax.core.errors import UserError

PATCH = 8


@pytest.fixture(scope="module")
def codec():
    """With windows of 2x2 tokens."""
    return make_codec(prior=False, spatial_window=2, positions="window")


@pytest.fixture(scope="module")
def old():
    """With attention over whole frames and learned positions, and a prior of tiles."""
    return make_codec()


def header_and_bits(data):
    """Of a raw file of one chunk: the header and its bits, a byte each."""
    file = io.BytesIO(data)
    header = container.read_header(file, "x")
    (chunk,) = container.read_chunks(file, header, "x", lambda _: 10**9)
    return header, np.unpackbits(np.frombuffer(chunk.payload, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5), (16, 16), (17, 8), (37, 50)])
def test_a_whole_picture_is_what_the_tokenizer_gives(codec, size):
    frames = picture(*size)
    header, found = header_and_bits(data := codec.encode(frames))
    assert (header.version, header.tile, header.overlap) == (4, NATIVE, 0)
    bits = codec.tokenizer.encode(frames)
    assert bits.shape == (1, -(-size[0] // PATCH), -(-size[1] // PATCH), 6)
    np.testing.assert_array_equal(found[: bits.size], bits.ravel())
    wanted = codec.tokenizer.decode(bits, size=size, dtype="uint8")
    np.testing.assert_array_equal(codec.decode(data).frames, wanted)
    np.testing.assert_array_equal(codec.reconstruct(frames), wanted)


def test_videos_without_tiles(codec):
    frames = picture(20, 33, 11)
    data = codec.encode(frames, 25)
    header = container.read_header(io.BytesIO(data), "x")
    assert (header.tile, header.stream) == (NATIVE, False)
    wanted = [codec.tokenizer.reconstruct(frame, dtype="uint8") for frame in frames]
    np.testing.assert_array_equal(codec.decode(data).frames, np.stack(wanted))


def test_large_pictures_are_cut_into_few_tiles(codec, monkeypatch):
    monkeypatch.setattr(coding_choice, "MOST_TOKENS", 16)
    frames = picture(50, 70)  # 7x9 tokens
    header, found = header_and_bits(data := codec.encode(frames))
    tiles = Tiles(50, 70, header.tile, header.overlap)
    assert header.overlap == PATCH
    assert header.tile[0] * header.tile[1] <= 16 * PATCH**2
    bits = codec.tokenizer.encode(tiles.cut(frames)[:, 0])
    np.testing.assert_array_equal(found[: bits.size], bits.ravel())
    made = codec.tokenizer.decode(bits)
    wanted = np.round((tiles.join(made[:, None]).clip(-1, 1) + 1) * np.float32(127.5))
    np.testing.assert_array_equal(codec.decode(data).frames, wanted)
    small = picture(32, 32)
    assert container.read_header(io.BytesIO(codec.encode(small)), "x").tile == NATIVE


def test_memory_chooses(codec):
    frames = picture(600, 700)
    whole, tiled = codec.encode(frames), codec.encode(frames, memory_mb=20)
    tile = container.read_header(io.BytesIO(tiled), "x").tile
    assert container.read_header(io.BytesIO(whole), "x").tile == NATIVE
    assert all(side % (2 * PATCH) == 0 for side in tile)
    np.testing.assert_array_equal(codec.decode(tiled).frames, codec.reconstruct(frames, tile=tile))


@pytest.mark.parametrize("tile", [0, 24, (16, 40), 800])
@pytest.mark.parametrize("which", ["codec", "old"])
def test_tiles_that_the_caller_chooses(request, which, tile):
    model = request.getfixturevalue(which)
    frames = picture(37, 50)
    data = model.encode(frames, mode="raw", tile=tile)
    decoded = model.decode(data)
    wanted = {0: NATIVE, 24: (24, 24), (16, 40): (16, 40), 800: NATIVE}[tile]
    assert decoded.header.tile == wanted
    np.testing.assert_array_equal(decoded.frames, model.reconstruct(frames, mode="raw", tile=tile))
    if wanted == NATIVE:
        whole = model.tokenizer.reconstruct(frames, dtype="uint8")
        np.testing.assert_array_equal(decoded.frames, whole)


def test_interpolated_positions_are_said_once(old, caplog):
    once.say_once.cache_clear()
    for size in ((20, 30), (30, 20), (20, 30)):
        old.encode(picture(*size), mode="raw", tile=0)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "interpolated" in line]) == 1
    caplog.clear()
    old.encode(picture(20, 30), mode="raw")
    assert not caplog.records


def test_a_frame_is_made_band_by_band(codec, monkeypatch):
    """Few tiles at a time, and so few rows: the same bytes and pixels."""
    frames = picture(90, 50, 3)
    data, wanted = codec.encode(frames, 25, tile=16), codec.reconstruct(frames, tile=16)
    np.testing.assert_array_equal(codec.decode(data).frames, wanted)
    monkeypatch.setattr("bsq_jax.coding.tile_tokenizer._TOKENS_AT_ONCE", 8)
    monkeypatch.setattr("bsq_jax.coding.tile_tokenizer.SMALLEST_BATCH", 8)
    assert codec.encode(frames, 25, tile=16) == data
    np.testing.assert_array_equal(codec.decode(data).frames, wanted)


def test_models_that_code_whole_pictures_open_files_in_tiles(codec):
    """A file of an earlier version has tiles of the model's own size."""
    frames = picture(37, 50)
    header, _ = header_and_bits(data := codec.encode(frames, tile=TILE))
    assert (header.version, header.tile, header.overlap) == (1, None, PATCH)
    np.testing.assert_array_equal(codec.decode(data).frames, codec.reconstruct(frames, tile=TILE))


# --- damage ---


def whole_frames(codec, data):
    """What a reader gets, and what it is told."""
    try:
        decoded = codec.decode(data, "x.bsq")
    except UserError as error:
        return np.zeros((0, 17, 33, 3), np.uint8), str(error)
    return decoded.frames, decoded.problem


@pytest.mark.parametrize("tile", [0, 16])
def test_corruptions(codec, tile):
    """An error or the frames before it; never wrong pixels, and never another error."""
    frames = picture(17, 33, 12)
    wanted = codec.reconstruct(frames, tile=tile)
    data = codec.encode(frames, 25, tile=tile)
    header = container.read_header(io.BytesIO(data), "x")
    size = len(header.pack())
    random = np.random.default_rng(8)
    seen = dict.fromkeys(("flip", "cut", "insert", "field", "version"), 0)
    for number in itertools.count():
        if sum(seen.values()) >= 250:
            break
        kind = list(seen)[number % len(seen)]
        bad = bytearray(data)
        if kind == "flip":
            bad[random.integers(len(bad))] ^= 1 << random.integers(8)
        elif kind == "cut":
            del bad[random.integers(len(bad)) :]
        elif kind == "insert":
            start = random.integers(len(bad) + 1)
            bad[start:start] = random.bytes(int(random.integers(1, 9)))
        else:
            fields = {**vars(header)}
            if kind == "field":
                name = ("tile", "overlap", "height", "width", "stream")[random.integers(5)]
                most = 20 if number % 2 else 70000
                value = int(random.integers(0, most))
                pair = int(random.integers(0, most)), int(random.integers(0, most))
                fields[name] = {"tile": pair, "stream": not header.stream}.get(name, value)
            else:
                fields["tile"] = None if number % 2 else ((8, 8), (16, 8))[random.integers(2)]
                fields["overlap"] = int(random.integers(0, 5))
            try:
                bad = bytearray(container.Header(**fields).pack() + data[size:])
            except UserError:
                continue
        if bytes(bad) == data:
            continue
        seen[kind] += 1
        found, said = whole_frames(codec, bytes(bad))
        assert said, (kind, number)
        assert "\n" not in said
        np.testing.assert_array_equal(found, wanted[: len(found)])
    assert min(seen.values()) > 25


@pytest.mark.parametrize(
    ("tile", "said"),
    [
        (NATIVE, "code with smaller tiles"),
        ((4096, 8000), "code with smaller tiles"),
        ((8000, 9000), "claims tiles of 8000x9000"),
        ((12, 16), "multiples of the patch"),
        ((16, 16), "cut short"),
    ],
)
def test_claims_cost_nothing(codec, tile, said):
    import tracemalloc

    header = container.Header(
        mode="raw", fingerprint=codec.fingerprint("raw"), height=8000, width=8000, frames=2**24,
        rate=25, bits=6, overlap=0, tile=tile,
    )  # fmt: skip
    chunk = bytes([0x80, 0x80, 0x80, 0x08, 0xFF, 0xFF, 0xFF, 0x7F]) + bytes(20)
    tracemalloc.start()
    with pytest.raises(UserError, match=said):
        codec.decode(header.pack() + chunk, "x.bsq")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
