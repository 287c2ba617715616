"""Token sets as files. Oracles: what was written, and messages about what was changed since."""

import json

import numpy as np
import pytest
from shapes import data_config

from bsq_jax.core.errors import UserError
from bsq_jax.data.tokens import (
    TokenSet,
    measured,
    measured_words,
    read_description,
    token_batches,
    write_description,
    write_split,
)
from bsq_jax.quantizers.layout import TokenLayout

ALONE = {"global_batch": 3, "shard_index": 0, "shard_count": 1}


@pytest.fixture
def folder(tmp_path):
    """Three clips a split, of classes 0, 1 and 2, though only two classes have names."""
    drawn = np.random.default_rng(0)
    clips = [(drawn.integers(0, 2, (1, 2, 3, 4), np.uint8), label) for label in range(3)]
    for split in ("train", "val"):
        write_split(tmp_path / f"{split}.array_record", clips)
    counts = {"train": 3, "val": 3}
    write_description(TokenSet(tmp_path, "ab", 1, (2, 3), 4, counts, "photos", ("a", "b")))
    return tmp_path


def read(folder, codes=16, **settings):
    asked = data_config(threads=0, **settings)
    names_code = TokenLayout(1, 4, codes).names_code
    tokens = read_description(folder)
    (batch,) = token_batches(tokens, "val", asked, names_code=names_code, **ALONE)
    return batch["bits"]


def test_tokens_that_name_no_code_are_refused(folder):
    assert read(folder, codes=16).max() == 1
    with pytest.raises(UserError, match=r"clip 0 of .* holds tokens that name no code: tokenize"):
        read(folder, codes=9)


def test_records_of_another_run_are_not_taken(folder):
    """Other bits in as many records of the same size: only a checksum can tell."""
    mine = read(folder)
    others = [(1 - bits, 0) for bits in mine]
    size = (folder / "val.array_record").stat().st_size
    write_split(folder / "val.array_record", others)
    assert (folder / "val.array_record").stat().st_size == size
    with pytest.raises(UserError, match=r"val\.array_record is not the file that tokens\.json"):
        read(folder)
    # Sets from before checksums were kept open as they did.
    described = json.loads((folder / "tokens.json").read_text())
    del described["files"], described["made"]
    (folder / "tokens.json").write_text(json.dumps(described))
    np.testing.assert_array_equal(read(folder), 1 - mine)


def test_a_class_without_a_name_is_refused_where_classes_are_asked_for(folder):
    assert read(folder).shape == (3, 1, 2, 3, 4)
    with pytest.raises(UserError, match=r"clip 2 of .* has class 2, but tokens\.json names 2"):
        read(folder, labels=True)


def test_reports_do_not_guess_how_an_old_set_was_made(folder):
    told = measured(data_config(eval_resize=99, frames=7), read_description(folder))
    assert told["source"] == f"tokens:{folder}"
    assert (told["made_from"], told["resize"], told["frames"]) == ("photos", None, None)
    assert "not recorded" in " ".join(measured_words(told))


def test_reports_name_the_sizes_of_frames_of_several():
    one = measured(data_config(), None)
    assert "sizes" not in one
    sizes = ((32, 64), (64, 32))
    several = measured(data_config(sizes=sizes, eval_crop="bucket"), None)
    what, _, how = measured_words(several)
    assert (what, how) == ("32x64, 64x32 (bucket)", "resized to cover the crop")
