"""Files of torch.save, read without PyTorch. Oracle: the arrays that were written, and numpy's
strides; tests/test_torch_file_torch.py reads files that PyTorch itself has written.
"""

import io
import os
import pickle
import sys
import warnings
import zipfile

import numpy as np
import pytest
from torch_writer import Global, Object, Pickled, Storage, Tensor, pickled, save_legacy, save_zip

from bsq_jax.core.errors import UserError
from bsq_jax.torch_import.plain_settings import plain
from bsq_jax.torch_import.safe_pickle import Inert, SafeUnpickler
from bsq_jax.torch_import.torch_file import read_torch_file

SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy])


def message_of(path):
    with pytest.raises(UserError) as raised:
        read_torch_file(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def node(value):
    """A node as OmegaConf pickles it: containers and leaves with their parents and metadata."""
    if isinstance(value, dict):
        content = {key: node(item) for key, item in value.items()}
        return Object("omegaconf.dictconfig", "DictConfig", (), {"_content": content})
    if isinstance(value, list):
        state = {"_content": [node(item) for item in value], "_metadata": Object("x", "Y")}
        return Object("omegaconf.listconfig", "ListConfig", (), state)
    return Object("omegaconf.nodes", "AnyNode", (), {"_val": value, "_parent": None})


@SAVERS
@pytest.mark.smoke
def test_every_type_and_shape(tmp_path, save):
    rng = np.random.default_rng(0)
    given = {
        name: (rng.normal(size=(3, 4)) * 50).astype(name)
        for name in ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    given |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    save(tmp_path / "a.pt", given)
    read = read_torch_file(tmp_path / "a.pt")
    assert list(read) == list(given)
    for key, array in given.items():
        assert (read[key].dtype, read[key].shape) == (array.dtype, array.shape), key
        np.testing.assert_array_equal(read[key], array)


@SAVERS
def test_half_precision_becomes_float32(tmp_path, save):
    numbers = np.array([1.0, -2.5, 3.140625, np.inf, 2.0**-14], np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype(np.int16)  # exact for these five
    brain = Tensor(Storage("7", upper, "BFloat16Storage"), 1, (4,), (1,))
    save(tmp_path / "a.pt", {"half": numbers.astype(np.float16), "brain": brain})
    read = read_torch_file(tmp_path / "a.pt")
    assert {array.dtype.name for array in read.values()} == {"float32"}
    np.testing.assert_array_equal(read["half"], numbers)
    np.testing.assert_array_equal(read["brain"], numbers[1:])


@SAVERS
def test_views_of_one_storage(tmp_path, save):
    numbers = np.arange(24, dtype=np.float32)
    storage = Storage("0", numbers)
    given = {
        "whole": Tensor(storage, 0, (4, 6), (6, 1)),
        "transposed": Tensor(storage, 0, (6, 4), (1, 6)),
        "inner": Tensor(storage, 7, (2, 3), (6, 2)),
        "repeated": Tensor(storage, 5, (3, 8), (0, 1)),
    }
    save(tmp_path / "a.pt", given)
    read = read_torch_file(tmp_path / "a.pt")
    np.testing.assert_array_equal(read["whole"], numbers.reshape(4, 6))
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(4, 6).T)
    np.testing.assert_array_equal(read["inner"], numbers.reshape(4, 6)[1:3, 1:6:2])
    np.testing.assert_array_equal(read["repeated"], np.tile(numbers[5:13], (3, 1)))
    assert np.shares_memory(read["whole"], read["inner"])


def test_other_byte_order(tmp_path):
    given = {"a": np.arange(5, dtype=np.float32), "b": np.arange(3, dtype=np.float16)}
    save_zip(tmp_path / "a.pt", given, order="big")
    for key, array in read_torch_file(tmp_path / "a.pt").items():
        np.testing.assert_array_equal(array, given[key])


@SAVERS
def test_containers_parameters_and_numpy(tmp_path, save):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    parameter = Object("torch._utils", "_rebuild_parameter", (array, True, None))
    attributes = {"_metadata": {"": {"version": 1}}}  # as state dicts have them
    state = Object("collections", "OrderedDict", ([["weight", parameter]],), attributes)
    number = Object("numpy", "dtype", ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    scalar = Object("numpy.core.multiarray", "scalar", (number, np.float64(0.75).tobytes()))
    hollow = (Global("numpy", "ndarray"), (0,), b"b")
    packed = (1, (2, 3), number, False, np.arange(6.0).tobytes())
    given = {
        "state": state,
        "size": Object("torch", "Size", ((2, 3),)),
        "best": scalar,
        "array": Object("numpy.core.multiarray", "_reconstruct", hollow, packed),
        "rest": [1, -(2**40), 2**80, 1.5, None, True, "text", (1, (2,)), {3}, b"bytes"],
    }
    save(tmp_path / "a.pt", given)
    read = read_torch_file(tmp_path / "a.pt")
    assert type(read["state"]) is dict
    np.testing.assert_array_equal(read["state"]["weight"], array)
    np.testing.assert_array_equal(read["array"], np.arange(6.0).reshape(2, 3))
    assert (read["size"], read["best"], read["rest"]) == ((2, 3), 0.75, given["rest"])


@pytest.mark.parametrize("protocol", range(6))
def test_all_protocols_of_pickle(protocol):
    given = {"a": [1, 300, 70000, 2**70, -1, 0.5, None, True, False], "b": ("x", "ü" * 300, "€")}
    given |= {"c": {"d": []}, "e": b"x" * 300, "f": [given["a"], given["a"]], "": ()}
    if protocol >= 4:
        given |= {"g": {1, 2}, "h": frozenset((3, 4))}
    if protocol < 3:
        del given["e"]  # a call of _codecs.encode there, or of bytes
    data = io.BytesIO(pickle.dumps(given, protocol) + pickle.dumps("next", protocol))
    read = SafeUnpickler(data).load()
    assert read == given
    assert read["f"][0] is read["f"][1]
    assert SafeUnpickler(data).load() == "next"


@SAVERS
def test_numpys_text_objects_and_dates_stay_descriptions(tmp_path, save):
    """A checkpoint's history may hold them; its weights are good all the same."""
    record = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    arrays = [np.array(["a"]), np.array([None, {}]), np.array(["2020"], "M8[s]"), record]
    scalars = [np.str_("x"), np.bytes_(b"x"), np.datetime64("2020"), record[0]]
    described = {str(i): Pickled(value) for i, value in enumerate(arrays + scalars)}
    empty = Pickled(np.zeros((0, 3)))  # has its bytes from a call of bytes()
    weight = np.arange(3, dtype=np.float32)
    save(tmp_path / "a.pt", {"history": described, "empty": empty, "w": weight})
    read = read_torch_file(tmp_path / "a.pt")
    names = [value.name for value in read["history"].values()]
    assert names == ["_reconstruct"] * 4 + ["scalar"] * 4
    assert all(isinstance(value, Inert) for value in read["history"].values())
    assert (read["empty"].shape, read["empty"].dtype) == ((0, 3), np.float64)
    np.testing.assert_array_equal(read["w"], weight)
    assert plain(read)["history"]["0"].state[1] == (1,)


@SAVERS
@pytest.mark.parametrize("data", [b"1234", b"", "text"])
def test_an_array_of_numbers_needs_its_bytes(tmp_path, save, data):
    number = Object("numpy", "dtype", ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    hollow = (Global("numpy", "ndarray"), (0,), b"b")
    packed = (1, (1,), number, False, data)
    values = (
        Object("numpy.core.multiarray", "_reconstruct", hollow, packed),
        Object("numpy.core.multiarray", "scalar", (number, data)),
    )
    for value in values:
        save(tmp_path / "a.pt", {"a": value})
        assert "is damaged or not a file of torch.save (" in message_of(tmp_path / "a.pt")


def test_settings_are_unwrapped(tmp_path):
    settings = {"model": {"params": {"vitconfig": {"heads": 4, "sizes": [1, 2.5, None]}}}, "x": ""}
    args = Object("argparse", "Namespace", (), {"lr": 0.1, "config": "a.yaml"})
    save_zip(tmp_path / "a.pt", {"config": node(settings), "args": args, "lone": Object("a", "B")})
    read = read_torch_file(tmp_path / "a.pt")
    assert isinstance(read["config"], Inert)
    flat = plain(read)
    assert flat["config"] == settings
    assert flat["args"] == {"lr": 0.1, "config": "a.yaml"}
    lone = flat["lone"]
    assert (lone.module, lone.name, lone.args, repr(lone)) == ("a", "B", (), "<Inert a.B>")


def test_settings_that_would_explode_or_never_end():
    bomb = []
    for _ in range(90):
        bomb = [bomb, bomb]
    assert len(plain(bomb)) == 2  # 2**90 lists, were they not shared
    loop = []
    loop.append(loop)
    with pytest.raises(UserError, match="nested more than 100 deep"):
        plain(loop)


class Trap:
    """Leaves a file behind when anything of it runs."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Sleeper:
    """As `Trap`, when its state is set."""

    mark = ""

    def __setstate__(self, state):
        with open(state["mark"], "w"):
            pass

    def __getstate__(self):
        return {"mark": Sleeper.mark}


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path, monkeypatch, protocol):
    mark = tmp_path / "executed"
    monkeypatch.setattr(Sleeper, "mark", str(mark))
    code = f"open({str(mark)!r}, 'w')"
    pickles = {
        "reduce": pickle.dumps(Trap(mark), protocol),
        "state": pickle.dumps(Sleeper(), protocol),
        "eval": pickled(Object("builtins", "eval", (code,)))[0],
        "instance": f"(S{code!r}\nibuiltins\neval\n.".encode(),
        "object": f"(c__builtin__\nexec\nS{code!r}\no.".encode(),
        "import": b"cbsq_never_imported\nthing\n)R.",
        "extension": b"\x82\x01)R.",
        "attribute": pickled(Object("builtins", "getattr", (Global("os", "x"), "system")))[0],
    }
    before = set(sys.modules)
    for name, data in pickles.items():
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        read = read_torch_file(path)
        assert isinstance(read, Inert), name
        assert isinstance(read.args, tuple), name
    assert not mark.exists()
    assert set(sys.modules) == before
    # The traps do work where pickles are run.
    pickle.loads(pickles["reduce"])
    assert mark.exists()


def storage(**changes):
    return Storage("0", np.arange(4, dtype=np.float32), **changes)


@SAVERS
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor(storage(), 0, (5,), (1,)), "'key' reaches beyond its storage of 4 numbers"),
        (Tensor(storage(), 1, (2, 2), (2, 1)), "'key' reaches beyond its storage"),
        (Tensor(storage(), 4, (), ()), "'key' reaches beyond its storage"),
        (Tensor(storage(), -1, (2,), (1,)), "'key' has a shape or strides that cannot be"),
        (Tensor(storage(), 3, (3,), (-1,)), "'key' has a shape or strides that cannot be"),
        (Tensor(storage(), 0, (2, 2), (2**62, 1)), "strides that cannot be"),
        (Tensor(storage(), 0, (2, 2), (2**47, 1)), "reaches beyond"),
        (Tensor(storage(), 0, (2**47, 2**47), (0, 0)), "'key' repeats the 4 numbers of its"),
        (Tensor(storage(), 0, (5,), (0,)), "'key' repeats the 4 numbers of its storage"),
        (Tensor(storage(), 0, (1,) * 65, (1,) * 65), "'key' has a shape or strides that cannot"),
        (Tensor(storage(), 0, (2, 2), (1,)), "strides that cannot be"),
        (Tensor(storage(), 0, (2.0,), (1,)), "strides that cannot be"),
        (Tensor(storage(), 0, [2], [1]), "strides that cannot be"),
        (Tensor(storage(count=9), 0, (4,), (1,)), "storage 0 has 4 numbers instead of 9 (for 'key"),
        (Tensor("text", 0, (4,), (1,)), "'key' has no storage"),
    ],
)
def test_no_tensor_leaves_its_storage(tmp_path, save, tensor, words):
    save(tmp_path / "a.pt", {"good": np.zeros(2, np.float32), "key": tensor})
    assert words in message_of(tmp_path / "a.pt")


def test_other_files(tmp_path):
    path = tmp_path / "a.pt"
    assert "does not exist" in message_of(path)
    assert "is a folder" in message_of(tmp_path)
    path.symlink_to(path)
    assert "cannot be opened (Too many levels of symbolic links)" in message_of(path)
    path.unlink()
    path.write_bytes(b"")
    assert "cannot be opened (Not a directory)" in message_of(path / "b.pt")
    for content in (b"", b"garbage", b"\x80\x02.", pickle.dumps({"a": 1}), os.urandom(999)):
        path.write_bytes(content)
        assert "is not a file of torch.save, or damaged" in message_of(path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    assert "is damaged or not a file of torch.save" in message_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip archive, but not one of torch.save" in message_of(path)
    save_zip(path, {"key": np.zeros(3, np.float32)}, leave_out=("data/0",))
    assert "it has no entry archive/data/0 (for 'key')" in message_of(path)
    save_zip(path, Object("a", "B"), leave_out=("byteorder",))
    assert repr(read_torch_file(path)) == "<Inert a.B>"
    strange = Storage("0", np.zeros(3, np.float32), "QUInt8Storage")
    save_zip(path, {"odd": Tensor(strange, 0, (3,), (1,)), "good": np.ones(2, np.float32)})
    read = read_torch_file(path)
    assert isinstance(read["odd"], Inert)
    assert read["good"].tolist() == [1, 1]


@SAVERS
def test_damage_gives_a_result_or_one_line(tmp_path, save):
    """A seeded fuzz: every truncation and many flipped bytes of a file with a bit of everything."""
    path = tmp_path / "a.pt"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save(path, {"w": array, "half": np.ones(3, np.float16), "config": node({"a": [1, "b"]})})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:end] for end in range(0, len(whole), 3)]
    for _ in range(700):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.integers(256)
        damaged.append(bytes(data))
    refused = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python's about escapes in text
        for data in damaged:
            path.write_bytes(data)
            try:
                plain(read_torch_file(path))
            except UserError as error:
                refused.append(str(error))
    assert len(damaged) > len(refused) > 300
    assert not [message for message in refused if "\n" in message]
