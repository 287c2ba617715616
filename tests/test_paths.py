"""Paths that a user gives. Oracle: addresses and paths written by hand."""

import pathlib

import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path


@pytest.mark.parametrize("text", ["runs/a", "/runs/a b", "a:b/c", "~/x", "C:/runs"])
def test_a_path_stays_as_it_is(text):
    assert local_path(text) == local_path(pathlib.Path(text)) == pathlib.Path(text)


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://b", "file:///tmp/run", "hdfs://h:1/x"])
def test_an_address_is_refused_in_one_line_even_after_pathlib(text):
    for given in (text, pathlib.Path(text)):
        with pytest.raises(UserError, match="mount the bucket") as raised:
            local_path(given)
        assert "\n" not in str(raised.value)
