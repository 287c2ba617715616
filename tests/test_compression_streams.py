"""Clips that are coded as one. Oracles: the tokenizer's own reconstruction of the whole clip."""

import io

import numpy as np
import pytest
from small_codec import TILE, make_codec, picture

from bsq_jax.coding import coding_choice, container
from bsq_jax.coding.container import NATIVE
from bsq_jax.core import once
from bsq_jax.core.errors import UserError

STREAMING = {"frames": 3, "positions": "rotary", "window": 2}


@pytest.fixture(scope="module")
def codec():
    return make_codec(**STREAMING)


def header_of(data):
    return container.read_header(io.BytesIO(data), "x")


@pytest.mark.parametrize("mode", ["raw", "prior"])
@pytest.mark.parametrize("time", [2, 3, 7])
def test_a_stream_is_the_whole_clip(codec, time, mode):
    frames = picture(TILE, TILE, time)
    data = codec.encode(frames, 25, mode=mode)
    header = header_of(data)
    assert (header.version, header.stream, header.tile) == (4, True, (TILE, TILE))
    wanted = codec.tokenizer.reconstruct(frames[None], dtype="uint8")[0]
    np.testing.assert_array_equal(codec.decode(data).frames, wanted)
    np.testing.assert_array_equal(codec.reconstruct(frames), wanted)
    # Not what clips of three frames by themselves give.
    whole = codec.tokenizer.encode(frames[None])
    parts = codec.tokenizer.decode_parts(whole)
    assert (parts == codec.tokenizer.decode(whole)).all() == (time <= 3)


def test_tiles_of_a_stream(codec):
    """Each has its own keys and values."""
    frames = picture(TILE, 24, 7)
    decoded = codec.decode(codec.encode(frames, 25)).frames
    tiles = np.stack([frames[:, :, :16], frames[:, :, 8:]])
    made = codec.tokenizer.reconstruct(tiles, dtype="uint8")
    np.testing.assert_array_equal(decoded[:, :, :8], made[0][:, :, :8])
    np.testing.assert_array_equal(decoded[:, :, 16:], made[1][:, :, 8:])


@pytest.mark.parametrize("tile", [None, (16, 24)])
def test_whole_frames_of_a_stream(tile):
    """With attention in windows of a frame too; tiles keep what is theirs."""
    codec = make_codec(prior=False, spatial_window=2, **STREAMING)
    frames = picture(21, 35, 6)
    data = codec.encode(frames, 25, tile=tile)
    header = header_of(data)
    assert (header.stream, header.tile) == (True, tile or NATIVE)
    decoded = codec.decode(data).frames
    np.testing.assert_array_equal(decoded, codec.reconstruct(frames, tile=tile))
    if tile is None:
        whole = codec.tokenizer.reconstruct(frames[None], dtype="uint8")[0]
        np.testing.assert_array_equal(decoded, whole)
    else:  # where the first tile lies alone
        first = codec.tokenizer.reconstruct(frames[None, :, :16, :24], dtype="uint8")[0]
        np.testing.assert_array_equal(decoded[:, :5, :11], first[:, :5, :11])


def test_a_stream_in_pieces(codec, monkeypatch):
    """Many tiles are computed some at a time, which changes nothing."""
    frames = picture(40, 40, 4)
    data = codec.encode(frames, 25)
    monkeypatch.setattr("bsq_jax.coding.tile_tokenizer._TOKENS_AT_ONCE", 8)
    again = make_codec(**STREAMING)
    assert again.encode(frames, 25) == data
    np.testing.assert_array_equal(again.decode(data).frames, codec.reconstruct(frames))


def test_clips_whose_keys_and_values_are_gigabytes_are_no_stream(codec, monkeypatch, caplog):
    frames = picture(40, 40, 4)
    stream = codec.encode(frames, 25)
    layers, width = codec.tokenizer.shape.layers, codec.tokenizer.shape.width
    kept = 16 * 4 * layers * width * 2 * 4  # 4x4 tiles of 4 tokens, of one frame, in float32
    once.say_once.cache_clear()
    monkeypatch.setattr(coding_choice, "MOST_STREAM_BYTES", kept)
    assert codec.encode(frames, 25) == stream
    monkeypatch.setattr(coding_choice, "MOST_STREAM_BYTES", kept - 1)
    assert not header_of(codec.encode(frames, 25)).stream
    assert "each 3 frames are coded by themselves" in caplog.text
    with pytest.raises(UserError, match="claims that frames of 40x40 pixels are one clip"):
        codec.decode(stream)


def test_pictures_and_single_frames_are_files_that_earlier_readers_open(codec):
    frames = picture(20, 24)
    assert header_of(codec.encode(frames)).version == 1
    assert header_of(codec.encode(frames, 25)).version == 1


@pytest.mark.parametrize(
    "model",
    [
        {"positions": "rotary"},  # without a window
        {"positions": "sincos", "window": 2},  # frame numbers that were never trained
        {"positions": "learned", "window": 2},
        {"positions": "rotary", "window": 2, "causality": "full"},
    ],
)
def test_other_models_code_groups_as_they_did(model):
    other = make_codec(prior=False, frames=3, **model)
    frames = picture(TILE, TILE, 7)
    data = other.encode(frames, 25)
    assert (header_of(data).version, header_of(data).tile) == (1, None)
    parts = [frames[first : first + 3][None] for first in (0, 3, 6)]
    wanted = [other.tokenizer.reconstruct(part, dtype="uint8")[0] for part in parts]
    np.testing.assert_array_equal(other.decode(data).frames, np.concatenate(wanted))


@pytest.mark.parametrize("time", [2, 5, 7, 23])
def test_tokens_of_several_frames(time):
    """Clips of five frames, one after the other, with tokens of 1, 2 and 2 frames."""
    other = make_codec(prior=False, frames=5, patch_time=2, positions="rotary", window=2)
    frames = picture(20, TILE, time)
    data = other.encode(frames, 25, overlap=0)
    decoded = other.decode(data)
    assert decoded.problem == ""
    np.testing.assert_array_equal(decoded.frames, other.reconstruct(frames, overlap=0))
    groups = [frames[first : first + 5] for first in range(0, time, 5)]
    tiles = [part[None, :, :TILE] for part in groups]
    wanted = [other.tokenizer.reconstruct(tile, dtype="uint8")[0] for tile in tiles]
    np.testing.assert_array_equal(decoded.frames[:, :4], np.concatenate(wanted)[:, :4])
    counts = sum(1 + (len(part) - 1 + 1) // 2 for part in groups)  # the first, and pairs
    assert len(data) == len(header_of(data).pack()) + 10 + -(-counts * 2 * 4 * 6 // 8)


def test_files_of_groups_still_open(codec):
    """A model that streams opens what earlier versions wrote with it: clip after clip."""
    frames = picture(TILE, TILE, 7)
    header = header_of(codec.encode(frames, 25, mode="raw"))
    bits = codec.tokenizer.encode_parts(frames[None])[0].reshape(7, -1)
    early = container.Header(**{**vars(header), "tile": None, "stream": False, "overlap": 8})
    assert early.version == 1
    chunk = container.Chunk(7, np.packbits(bits).tobytes(), container.bits_checksum(bits))
    decoded = codec.decode(early.pack() + container.pack_chunk(chunk, early)).frames
    parts = [frames[first : first + 3][None] for first in (0, 3, 6)]
    wanted = [codec.tokenizer.reconstruct(part, dtype="uint8")[0] for part in parts]
    np.testing.assert_array_equal(decoded, np.concatenate(wanted))


def test_a_stream_that_the_model_cannot_have_coded():
    other = make_codec(prior=False, frames=3)
    data = other.encode(picture(TILE, TILE, 2), 25)
    header = header_of(data)
    forged = container.Header(**{**vars(header), "tile": NATIVE, "overlap": 0, "stream": True})
    with pytest.raises(UserError, match="claims that all frames are one clip"):
        other.decode(forged.pack() + data[len(header.pack()) :], "x")


@pytest.mark.parametrize("mode", ["raw", "prior"])
def test_a_stream_cut_short_gives_its_whole_frames(codec, mode, monkeypatch):
    monkeypatch.setattr("bsq_jax.coding.file_encoder._CHUNK_BYTES", 8)
    frames = picture(20, 24, 10)
    data, wanted = codec.encode(frames, 25, mode=mode), codec.reconstruct(frames)
    file = io.BytesIO(data)
    header = container.read_header(file, "x")
    done = 0
    for chunk in container.read_chunks(file, header, "x", lambda _: 10**9):
        done += chunk.frames
        if done == 10:
            break
        decoded = codec.decode(data[: file.tell() + 2])
        assert f"{done} of 10 frames are whole" in decoded.problem
        np.testing.assert_array_equal(decoded.frames, wanted[:done])
    assert done == 10
    bad = bytearray(data)
    bad[-6] ^= 1
    decoded = codec.decode(bytes(bad))
    assert "differs from its checksum" in decoded.problem
    np.testing.assert_array_equal(decoded.frames, wanted[: len(decoded.frames)])
