"""Pickles read as data. Oracle: the values that pickle wrote, and arrays that numpy wrote."""

import contextlib
import io
import pickle
import tracemalloc

import numpy as np
import pytest

from bsq_jax.torch_import.numpy_records import (
    DamagedError,
    NotNumbersError,
    numpy_array,
    numpy_scalar,
)
from bsq_jax.torch_import.safe_pickle import Inert, SafeUnpickler, checked_keys


def read(value, protocol: int = 4):
    return SafeUnpickler(io.BytesIO(pickle.dumps(value, protocol))).load()


def test_keys_may_be_tuples_but_not_towers_of_them():
    """Twice the same tuple, a hundred times over: hashing it would never end."""
    given = {(1, "a"): 1, frozenset((1, 2)): {(3,), 4}}
    assert read(given) == given
    for bad in ({((1,),): 1}, {((1,),)}, frozenset([((1,),)]), {(frozenset((1,)),): 1}):
        with pytest.raises(ValueError, match="a key of tuples in tuples"):
            read(bad)
    with pytest.raises(ValueError, match="a key of tuples in tuples"):  # the older opcode
        SafeUnpickler(io.BytesIO(b"(((tt(td.")).load()
    tower: tuple = ()
    for _ in range(100):
        tower = (tower, tower)
    with pytest.raises(ValueError, match="a key of tuples in tuples"):
        checked_keys([tower])


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("code", ["<f4", ">f8", "<f2", "|i1", ">i4", "<u8", "|b1", "<c8"])
def test_arrays_and_numbers(code, protocol):
    array = np.arange(6).reshape(2, 3).astype(code)
    for given in (array, np.asfortranarray(array), array[0, :0], array[1, 2]):
        got = numpy_array(read(given, protocol))
        assert got.shape == given.shape
        assert got.dtype == given.dtype
        np.testing.assert_array_equal(got, given)


def test_what_describes_no_array():
    for value in (1.5, {}, np.ndarray, np.dtype("f4"), np.ma.zeros(2), np.rec.array([1, 2])):
        assert numpy_array(read(value)) is None
    for value in (np.array(["x"]), np.zeros(1, object), np.zeros(1, "M8[s]"), np.str_("x")):
        with pytest.raises(NotNumbersError, match=r"values of type '.*' instead of numbers"):
            numpy_array(read(value))
    dtype = Inert("numpy", "dtype", ("f4", False, True))
    assert numpy_scalar((dtype, np.float32(1.5).tobytes())) == 1.5
    for args in ((dtype, b"123"), (dtype, b"12345"), (dtype,), ("f4", b"1234")):
        with pytest.raises(DamagedError):
            numpy_scalar(args)
    strange = Inert("numpy", "dtype", ("f3", False, True))
    with pytest.raises(NotNumbersError, match="which this machine has not"):
        numpy_scalar((strange, b"123"))


@pytest.mark.parametrize(
    "attack",
    [
        pickle.BYTEARRAY8 + (2**34).to_bytes(8, "little"),
        pickle.EMPTY_LIST + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f",
        pickle.BINBYTES8 + (2**62).to_bytes(8, "little"),
        pickle.NONE + pickle.LONG4 + b"\xff\xff\xff\x7f" + pickle.POP,
    ],
)
def test_claimed_sizes_take_no_memory(attack):
    """16 GB of zeros, 32 GB of memo, bytes and a number that are not there."""
    tracemalloc.start()
    with contextlib.suppress(Exception):
        SafeUnpickler(io.BytesIO(pickle.PROTO + b"\x05" + attack + pickle.STOP)).load()
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("call", [pickle.REDUCE, pickle.NEWOBJ])
@pytest.mark.parametrize("value", [b"]", b"}", b"N", b"N\x85", b"K\x01", b"\x8c\x01a"])
def test_only_records_can_be_called(value, call):
    with pytest.raises((ValueError, AttributeError)):
        SafeUnpickler(io.BytesIO(b"\x80\x04" + value + b")" + call + b".")).load()


def test_states_and_entries_reach_only_records_and_containers():
    """An array that took entries would look through a list of lists in 2**60 steps."""

    def array(args, key):
        return np.zeros(3)

    named = b"ca\nb\n)R"
    for change in (b"}b.", b"]Ns.", b"(]Nu.", b"(K\x01\x90.", b"Na.", b"(Ne."):
        with pytest.raises((ValueError, AttributeError)):
            SafeUnpickler(io.BytesIO(named + change), {("a", "b"): array}).load()
        record = SafeUnpickler(io.BytesIO(named + change)).load()
        assert isinstance(record, Inert)
        assert record.items or record.entries or record.state == {}
