"""Which tokens are visible to which. Oracle: masks written out by hand."""

import chex
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.models.attention.causality import Causality


def rows(mask):
    return ["".join("x" if seen else "." for seen in row) for row in mask]


@pytest.mark.smoke
def test_masks_of_three_frames_of_two_tokens():
    assert rows(Causality("block_causal").mask((0, 3), (0, 3), 2)) == [
        "xx....",
        "xx....",
        "xxxx..",
        "xxxx..",
        "xxxxxx",
        "xxxxxx",
    ]
    assert rows(Causality("token_causal").mask((0, 3), (0, 3), 2)) == [
        "x.....",
        "xx....",
        "xxx...",
        "xxxx..",
        "xxxxx.",
        "xxxxxx",
    ]
    assert rows(Causality("block_causal", window=2).mask((0, 3), (0, 3), 2)) == [
        "xx....",
        "xx....",
        "xxxx..",
        "xxxx..",
        "..xxxx",
        "..xxxx",
    ]
    assert rows(Causality("full", window=2).mask((0, 3), (0, 3), 2)) == [
        "xxxx..",
        "xxxx..",
        "xxxxxx",
        "xxxxxx",
        "..xxxx",
        "..xxxx",
    ]
    assert rows(Causality("token_causal", window=1).mask((0, 2), (0, 2), 2)) == [
        "x...",
        "xx..",
        "..x.",
        "..xx",
    ]


def test_no_mask_where_all_is_seen():
    assert Causality("full").mask((0, 3), (0, 3), 2) is None
    assert Causality("block_causal").mask((0, 1), (0, 1), 4) is None
    assert Causality("block_causal").mask((2, 3), (0, 3), 4) is None
    assert Causality("block_causal", window=2).mask((2, 3), (1, 3), 4) is None


@pytest.mark.parametrize("kind", ["block_causal", "token_causal", "full"])
@pytest.mark.parametrize("window", [0, 1, 2, 3, 9])
def test_a_span_holds_all_that_is_seen_and_no_frame_more(kind, window):
    causality, frames = Causality(kind, window), 5
    whole = causality.mask((0, frames), (0, frames), 2)
    whole = np.ones((10, 10), bool) if whole is None else whole
    for first in range(frames):
        for last in range(first + 1, frames + 1):
            begin, end = causality.visible_frames(first, last, frames)
            seen = np.flatnonzero(whole[2 * first : 2 * last].any(axis=0))
            assert (begin, end) == (seen[0] // 2, seen[-1] // 2 + 1)
            part = causality.mask((first, last), (begin, end), 2)
            wanted = whole[2 * first : 2 * last, 2 * begin : 2 * end]
            part = np.ones_like(wanted) if part is None else part
            chex.assert_trees_all_equal(part, wanted, strict=True)


def test_only_full_attention_does_not_stream():
    assert Causality("block_causal").streams
    assert Causality("token_causal").streams
    assert not Causality("full").streams


def test_unknown_rules_are_refused():
    with pytest.raises(UserError, match="causality 'banana': it must be one of"):
        Causality("banana")
    with pytest.raises(UserError, match="window is -1"):
        Causality(window=-1)
