"""The bytes of a file. Oracles: the page that specifies them, and a reader written for the test."""

import fractions
import io
import pathlib
import re
import tracemalloc
import zlib

import numpy as np
import pytest

from bsq_jax.coding.container import (
    NATIVE,
    Chunk,
    DamagedFile,
    Header,
    Origin,
    TruncatedFile,
    bits_checksum,
    pack_chunk,
    read_chunks,
    read_header,
)
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing

pytestmark = pytest.mark.smoke
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "format.md"
BITS = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], np.uint8)
PICTURE = Header(
    mode="raw", fingerprint=bytes(range(8)), height=300, width=8, frames=1, rate=None, bits=4,
    overlap=8,
)  # fmt: skip
VIDEO = Header(
    mode="prior", fingerprint=b"12345678", height=1, width=65536, frames=300,
    rate=fractions.Fraction(30000, 1001), bits=1024, overlap=0,
)  # fmt: skip
TIMES = Timing(fractions.Fraction(90000, 7), np.array([1, 127, 128, 2**14, 2**28, 2**35 - 1, 5]))
TIMED = Header(**{**vars(VIDEO), "frames": 7, "timing": TIMES, "rate": TIMES.rate})
OF_A_RUN = Header(**{**vars(PICTURE), "origin": Origin("quick", 300, averaged=True)})
TIMED_OF_A_RUN = Header(**{**vars(TIMED), "origin": Origin("ä" * 32, 2**35 - 1)})
WHOLE = Header(**{**vars(OF_A_RUN), "tile": NATIVE, "overlap": 0})
TILED = Header(**{**vars(PICTURE), "tile": (1344, 24)})
STREAM = Header(**{**vars(VIDEO), "tile": NATIVE, "stream": True})
TIMED_STREAM = Header(**{**vars(TIMED_OF_A_RUN), "tile": (8, 65536), "stream": True})
OLD = [PICTURE, VIDEO, TIMED, OF_A_RUN, TIMED_OF_A_RUN]
ALL = [*OLD, WHOLE, TILED, STREAM, TIMED_STREAM]


def packed(header, chunks):
    return header.pack() + b"".join(pack_chunk(chunk, header) for chunk in chunks)


def chunks_of(header):
    frames, parts = header.frames, []
    while frames:
        count = min(frames, 130)
        parts.append(Chunk(count, bytes(range(count)), 77 + count))
        frames -= count
    return parts


def read(data, limit=lambda _: 10**6):
    file = io.BytesIO(data)
    header = read_header(file, "x.bsq")
    return header, list(read_chunks(file, header, "x.bsq", limit))


def examples():
    """The blocks of bytes on the page: of times, and of a whole file."""
    parts = PAGE.read_text().split("<!-- tests/test_container.py reads this -->")[1:]
    return [part.split("```")[1] for part in parts]


def test_the_example_of_the_page():
    example = examples()[3]
    parts = [re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in example.split("\n") if line]
    data = bytes.fromhex("".join(parts))
    assert read(data) == (PICTURE, [Chunk(1, np.packbits(BITS).tobytes(), bits_checksum(BITS))])
    assert data == packed(*read(data))


def test_the_origin_of_the_page():
    example = examples()[0]
    parts = [re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in example.split("\n") if line]
    data = bytes.fromhex("".join(parts))
    assert read_header(io.BytesIO(data), "x.bsq") == OF_A_RUN
    assert data == OF_A_RUN.pack()


def test_the_tiles_of_the_page():
    example = examples()[1]
    parts = [re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in example.split("\n") if line]
    data = bytes.fromhex("".join(parts))
    assert read_header(io.BytesIO(data), "x.bsq") == WHOLE
    assert data == WHOLE.pack()


def with_origin(step, size, name, flags=20):
    """A header of version 3 with a right checksum."""
    body = OF_A_RUN.pack()[: 8 + 2 + 8 + 6]
    body = body[:9] + bytes([flags]) + body[10:] + varint_of(step) + varint_of(size) + name
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((300, 65, b"x" * 65), "differs from its checksum"),  # longer than a name may be
        ((300, 2**34, b"quick"), "differs from its checksum"),
        ((300, 9, b"quick"), "cut short"),
        ((300, 5, b"qu\x1b[m"), "the name 'qu.x1b.m' of a model cannot be"),
        ((300, 5, b"qu\xff\xffk"), "the name of its model is no text"),
        ((300, 5, b"quick", 20 + 8), "differs from its checksum"),  # those are missing
        ((300, 5, b"quick", 20 + 32), "does not know"),
    ],
)
def test_absurd_origins(changes, said):
    assert with_origin(300, 5, b"quick") == OF_A_RUN.pack()
    with pytest.raises(UserError, match=said) as raised:
        read_header(io.BytesIO(with_origin(*changes)), "x.bsq")
    assert str(raised.value).startswith("x.bsq ")
    assert raised.value.args[0].isprintable()


def test_the_times_of_the_page():
    example = examples()[2]
    parts = [re.match(r"((?:[0-9a-f]{2} ?)+)", line)[1] for line in example.split("\n") if line]
    data = bytes.fromhex("".join(parts))
    timing = Timing(fractions.Fraction(1000), np.array([33, 1000]))
    header = Header(**{**vars(PICTURE), "frames": 2, "timing": timing, "rate": timing.rate})
    assert read_header(io.BytesIO(data), "x.bsq") == header
    assert data == header.pack()


@pytest.mark.parametrize("header", ALL)
def test_against_a_reader_of_the_page(header):
    data, place = packed(header, chunks_of(header)), 0

    def take(size):
        nonlocal place
        place += size
        return data[place - size : place]

    def varint():
        parts = []
        while not parts or parts[-1] > 127:
            parts.append(take(1)[0])
        return sum((part & 127) << 7 * i for i, part in enumerate(parts))

    picture = header in (PICTURE, OF_A_RUN, WHOLE, TILED)
    timed = header in (TIMED, TIMED_OF_A_RUN, TIMED_STREAM)
    tiled = header not in OLD
    version = 4 if tiled else 3 if header.origin else 2 if timed else 1
    flags = 4 if picture else 7
    known = {WHOLE: 16 + 64, STREAM: 32, TIMED_STREAM: 8 + 32 + 64}
    flags |= ({OF_A_RUN: 16, TIMED_OF_A_RUN: 8} | known).get(header, 0)
    assert take(10) == b"\x8bBSQ\r\n\x1a\n" + bytes([version, flags])
    assert take(8) == header.fingerprint
    numbers = [varint() for _ in range(5)]
    assert numbers == [header.height, header.width, header.frames, header.bits, header.overlap]
    if tiled:
        assert (varint(), varint()) == header.tile
    numbers += [varint() for _ in range(0 if picture else 2)]
    times_crc = 0
    if timed:
        assert numbers[5:] == [90000, 7]
        times_crc = int.from_bytes(take(4), "little")
    elif header.rate:
        assert numbers[5:] == [30000, 1001]
    if header.origin:
        assert varint() == header.origin.step
        assert take(varint()).decode() == header.origin.name
    most = 118 if header.origin else 48 if timed else 44
    assert place <= most + 6 * tiled
    assert zlib.crc32(data[:place]) == (crc := int.from_bytes(take(4), "little"))
    if timed:
        size = varint()
        assert zlib.crc32(data[place : place + size]) == times_crc
        assert [varint() for _ in range(7)] == TIMES.lasting.tolist()
        assert size == 1 + 1 + 2 + 3 + 5 + 5 + 1
    for chunk in chunks_of(header):
        start = place
        assert varint() == chunk.frames
        size = varint()
        assert int.from_bytes(take(4), "little") == chunk.checksum
        assert take(size) == chunk.payload
        assert zlib.crc32(data[start:place], crc) == int.from_bytes(take(4), "little")
    assert place == len(data)
    assert read(data) == (header, chunks_of(header))


def test_the_checksum_of_bits_can_be_taken_in_parts():
    whole = bits_checksum(BITS)
    assert whole == zlib.crc32(bytes(BITS.ravel().tolist()))
    assert bits_checksum(BITS[1], bits_checksum(BITS[0])) == whole


@pytest.mark.parametrize(
    "data",
    [
        packed(PICTURE, [Chunk(1, b"\xb2", bits_checksum(BITS))]),
        packed(TIMED, [Chunk(7, b"\xb2", bits_checksum(BITS))]),
        packed(OF_A_RUN, [Chunk(1, b"\xb2", bits_checksum(BITS))]),
        packed(TIMED_OF_A_RUN, [Chunk(7, b"\xb2", bits_checksum(BITS))]),
        packed(WHOLE, [Chunk(1, b"\xb2", bits_checksum(BITS))]),
        packed(TIMED_STREAM, [Chunk(7, b"\xb2", bits_checksum(BITS))]),
    ],
    ids=["picture", "timed", "of a run", "timed, of a run", "whole", "stream"],
)
def test_every_changed_byte_is_noticed(data):
    for place in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            with pytest.raises(UserError) as raised:
                read(bytes(bad))
            assert str(raised.value).startswith("x.bsq ")
            assert "\n" not in str(raised.value)


def frames_until_the_end(data):
    """``(whole frames, error)`` of a file that is read to its end."""
    given, file = 0, io.BytesIO(data)
    try:
        for chunk in read_chunks(file, read_header(file, "x.bsq"), "x.bsq", lambda _: 1000):
            given += chunk.frames
    except UserError as error:
        return given, error
    return given, None


@pytest.mark.parametrize("header", ALL)
def test_every_cut_is_noticed(header):
    chunks = chunks_of(header)
    data = packed(header, chunks)
    ends, whole = [len(header.pack())], [0]
    for chunk in chunks:
        ends.append(ends[-1] + len(pack_chunk(chunk, header)))
        whole.append(whole[-1] + chunk.frames)
    for cut in range(len(data)):
        given, error = frames_until_the_end(data[:cut])
        assert isinstance(error, TruncatedFile) or cut == 0
        if cut >= ends[0]:
            wanted = max(w for end, w in zip(ends, whole, strict=True) if end <= cut)
            assert error.frames == given == wanted
    with pytest.raises(DamagedFile, match="3 bytes behind its end"):
        read(data + b"abc")


def test_a_chunk_fits_its_own_header_alone():
    other = Header(**{**vars(PICTURE), "height": 8, "width": 300})
    chunk = pack_chunk(Chunk(1, b"\xb2", 0), PICTURE)
    with pytest.raises(DamagedFile, match="differs from its checksum"):
        read(other.pack() + chunk)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0}, {"width": 65537}, {"frames": 0}, {"bits": 0}, {"bits": 1025},
        {"frames": 2}, {"overlap": -1}, {"rate": fractions.Fraction(1, 2**33)},
        {"tile": (0, 8)}, {"tile": (8, 65537)}, {"tile": (-8, 8)},
        {"tile": NATIVE},  # with an overlap
        {"stream": True}, {"stream": True, "tile": (8, 8)},  # of a picture
    ],
)  # fmt: skip
def test_impossible_headers(change):
    with pytest.raises(UserError):
        Header(**{**vars(PICTURE), **change})


@pytest.mark.parametrize(
    ("rate", "said"),
    [(b"\x1e\x00", "lowest terms"), (b"\x02\x02", "lowest terms"), (b"\x00\x01", "claims")],
)
def test_rates_that_no_video_has(rate, said):
    header = Header(**{**vars(VIDEO), "rate": fractions.Fraction(30)})
    bad = bytearray(header.pack()[:-4])
    bad[-2:] = rate
    with pytest.raises(DamagedFile, match=said):
        read(bytes(bad + zlib.crc32(bad).to_bytes(4, "little")))


def test_numbers_have_one_way_to_be_written():
    body = PICTURE.pack()[:-4]
    for written in (b"\x88\x00", b"\x80\x80\x80\x80\x80\x01", b"\xff" * 40):
        bad = body[:-1] + written
        with pytest.raises(UserError, match=r"is damaged|cut short"):
            read(bad + zlib.crc32(bad).to_bytes(4, "little"))


def test_more_frames_than_there_are():
    with pytest.raises(DamagedFile, match="impossible size"):
        read(PICTURE.pack() + pack_chunk(Chunk(2, b"\xb2", 0), PICTURE))


def test_files_that_went_through_a_text_mode():
    data = packed(PICTURE, [Chunk(1, b"\xb2", 0)])
    with pytest.raises(DamagedFile, match="first bytes"):
        read(data.replace(b"\r\n", b"\n"))


def test_later_versions_and_unknown_flags():
    for header, place, value, said in (
        (PICTURE, 8, 5, "version 5"),
        (PICTURE, 8, 0, "version 0"),
        (PICTURE, 9, 12, "does not know"),
        (PICTURE, 9, 0, "not know"),
        (OF_A_RUN, 9, 4 + 32, "does not know"),  # a flag of version 4
        (WHOLE, 9, 4 + 64 + 128, "does not know"),
        (WHOLE, 9, 4 + 64 + 32, "claims a stream of what is no video"),
        (TILED, 9, 4 + 16, "claims averaged weights of a model"),
    ):
        bad = bytearray(header.pack()[:-4])
        bad[place] = value
        bad += zlib.crc32(bad).to_bytes(4, "little")
        with pytest.raises(UserError, match=said):
            read(bytes(bad))


def test_limits_hold_before_anything_is_read():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            assert size <= 2**20
            return bytes(size)

    header = VIDEO
    start = io.BytesIO(header.pack() + b"\x01\xff\xff\xff\x7f")
    read_header(start, "x")
    with pytest.raises(DamagedFile, match="impossible size"):
        list(read_chunks(start, header, "x", lambda _: 10**6))
    with pytest.raises(DamagedFile):
        list(read_chunks(Endless(), header, "x", lambda _: 10**6))


# --- times ---


def with_times(content, frames=7, size=None, ticks=(90000, 7), flags=7):
    """A header of version 2 and its block of times, every checksum of which is right."""
    body = TIMED.pack()[: 8 + 2 + 8]
    body = body[:9] + bytes([flags]) + body[10:]
    numbers = [1, 65536, frames, 1024, 0, *(ticks if flags & 2 else ())]
    body += b"".join(map(varint_of, numbers)) + zlib.crc32(content).to_bytes(4, "little")
    body += zlib.crc32(body).to_bytes(4, "little")
    return body + varint_of(len(content) if size is None else size) + content


def varint_of(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def test_times_come_back():
    assert with_times(b"".join(map(varint_of, TIMES.lasting.tolist()))) == TIMED.pack()
    header, _ = read(packed(TIMED, chunks_of(TIMED)))
    assert header == TIMED
    assert header.timing == TIMES
    assert header.rate == 7 / (int(TIMES.lasting.sum()) / fractions.Fraction(90000, 7))
    many = np.random.default_rng(0).integers(1, 2**20, 50000)
    timing = Timing(fractions.Fraction(1000), many)
    header = Header(**{**vars(VIDEO), "frames": 50000, "timing": timing, "rate": timing.rate})
    np.testing.assert_array_equal(read_header(io.BytesIO(header.pack()), "x").timing.lasting, many)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"content": b"\x01" * 6}, "checksum"),  # too few for seven frames
        ({"content": b"\x01" * 8}, "not those of 7 frames"),
        ({"content": b"\x00" + b"\x01" * 6}, "not those"),  # a frame of no time
        ({"content": b"\x81\x00" + b"\x01" * 6}, "not those"),  # two ways to write a number
        ({"content": b"\x01" * 6 + b"\x81"}, "not those"),  # the last does not end
        ({"content": b"\x81\x81\x81\x81\x81\x01" + b"\x01" * 6}, "not those"),  # too large
        ({"content": b"\x01" * 7, "size": 36}, "checksum"),  # more than seven frames can take
        ({"content": b"\x01" * 7, "size": 2**34}, "checksum"),
        ({"content": b"\x01" * 7, "size": 30}, "cut short"),
        ({"content": b"\x01" * 7, "frames": 2**24 + 1}, "claims"),
        ({"content": b"\x01" * 7, "frames": 0}, "claims"),
        ({"content": b"\x01" * 7, "flags": 5}, "claims"),  # a picture
        ({"content": b"\x01" * 7, "ticks": (0, 1)}, "claims"),
        ({"content": b"\x01" * 7, "ticks": (1, 0)}, "claims"),
        ({"content": b"\x01" * 7, "ticks": (30, 2)}, "lowest terms"),
        ({"content": b"\x01" * 7, "ticks": (2**31, 1)}, "claims"),
    ],
)
def test_absurd_times(changes, said):
    with pytest.raises(DamagedFile, match=said) as raised:
        read_header(io.BytesIO(with_times(**changes)), "x.bsq")
    assert str(raised.value).startswith("x.bsq is ")
    assert "\n" not in str(raised.value)


def test_claimed_times_cost_nothing():
    """A block of 80 MB is claimed; what is read and kept is what is there."""
    data = with_times(b"\x01" * 7, frames=2**24, size=5 * 2**24)
    tracemalloc.start()
    with pytest.raises(TruncatedFile):
        read_header(io.BytesIO(data), "x")
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_a_chunk_fits_its_own_times_alone():
    other = Timing(TIMES.ticks, TIMES.lasting[::-1])
    other = Header(**{**vars(TIMED), "timing": other})
    with pytest.raises(DamagedFile, match="differs from its checksum"):
        read(other.pack() + pack_chunk(Chunk(7, b"\xb2", 0), TIMED))


@pytest.mark.parametrize("change", [{"frames": 8}, {"frames": 1, "rate": None}])
def test_times_are_those_of_the_frames(change):
    with pytest.raises((UserError, ValueError)):
        Header(**{**vars(TIMED), **change})
