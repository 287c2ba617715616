"""Tokens beside their file. Oracles: `Codec.encode`, `Codec.decode`, the size of the file."""

import io

import numpy as np
import pytest
from small_codec import make_codec, picture

from bsq_jax.coding.container import read_chunks, read_header
from bsq_jax.core.errors import UserError
from bsq_jax.quantizers.layout import TokenLayout

CODECS = {
    "tiles": ({"min_bits": 4}, 1, 4),
    "neighbourhoods": ({"reach": (1, 1), "spatial_window": 2, "positions": "window"}, 1, None),
    "clip": ({"frames": 4}, 6, None),
    "stages": ({"prior": False, "stages": 2}, 1, 6),
}


def payload_bits(data):
    file = io.BytesIO(data)
    header = read_header(file, "x")
    return 8 * sum(len(chunk.payload) for chunk in read_chunks(file, header, "x", lambda _: 10**9))


@pytest.mark.parametrize("name", CODECS)
def test_the_file_its_frames_and_what_bits_take(name):
    settings, time, bits = CODECS[name]
    codec = make_codec(**settings)
    frames = picture(27, 44, time)
    rate = 25 if time > 1 else None
    coded = codec.coded_tokens(frames, rate, bits=bits)
    assert coded.file == codec.encode(frames, rate, bits=bits)
    made = codec.decode(coded.file).frames
    np.testing.assert_array_equal(coded.decode(), made)
    np.testing.assert_array_equal(coded.decode_frame(time - 1), made[-1])
    assert coded.costs.shape == coded.tokens.shape
    if codec.has_prior:
        assert 0 <= payload_bits(coded.file) - coded.costs.sum() < 80
    else:
        assert coded.costs.sum() == coded.tokens.size <= payload_bits(coded.file)
    with pytest.raises(UserError, match="none"):
        coded.decode_frame(time)
    with pytest.raises(UserError, match="none"):
        coded.flipped(0, 0, 0, [bits or 6])


def test_each_pixel_has_the_token_whose_flip_changes_it():
    codec = make_codec(prior=False)
    coded = codec.coded_tokens(picture(21, 40))
    before = coded.decode()[0].astype(int)
    for y, x in ((0, 0), (20, 39), (9, 20), (12, 13)):
        place = coded.place(y, x)
        top, left, bottom, right = place.box
        assert top <= y < bottom <= 21
        assert left <= x < right <= 40
        changed = coded.flipped(0, place.row, place.column, [0, 1, 2])
        differs = (coded.decode(changed)[0] != before).any(-1)
        rows, columns = np.nonzero(differs)
        assert differs[top:bottom, left:right].any()
        # The tile that it lies in has two tokens a side.
        assert max(top - 8, 0) <= rows.min() <= rows.max() < bottom + 8
        assert max(left - 8, 0) <= columns.min() <= columns.max() < right + 8
        grid = np.zeros(coded.tokens.shape[1:3])
        grid[place.row, place.column] = 1
        shown = coded.as_pixels(grid)
        assert shown[y, x] == 1
        assert np.flatnonzero(shown.any(1))[0] >= top
    with pytest.raises(UserError, match="outside"):
        coded.place(21, 0)


def test_patterns_that_name_no_code_are_refused():
    codec = make_codec(prior=False)
    coded = codec.coded_tokens(picture(16, 16))
    coded.tokens[0, 0, 0] = [1, 0, 0, 0, 0, 0]
    codec._tiled.layout = TokenLayout(stages=1, bits=6, codes=33)  # 0..32
    with pytest.raises(UserError, match="no code has these bits"):
        coded.flipped(0, 0, 0, [5])
    codec._tiled.layout = TokenLayout(stages=1, bits=6, codes=34)
    assert coded.flipped(0, 0, 0, [5])[0, 0, 0].tolist() == [1, 0, 0, 0, 0, 1]
