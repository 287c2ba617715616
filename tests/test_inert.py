"""Pickles read as data. Oracle: the values that pickle wrote, and arrays that numpy wrote."""

import io
import pickle

import numpy as np
import pytest

from bsq_jax.torch_import.inert import Inert, InertReader, checked_keys
from bsq_jax.torch_import.inert_numpy import (
    DamagedError,
    NotNumbersError,
    numpy_array,
    numpy_scalar,
)


def read(value, protocol: int = 4):
    return InertReader({}).read(io.BytesIO(pickle.dumps(value, protocol)))


def test_keys_may_be_tuples_but_not_towers_of_them():
    """Twice the same tuple, a hundred times over: hashing it would never end."""
    given = {(1, "a"): 1, frozenset((1, 2)): {(3,), 4}}
    assert read(given) == given
    for bad in ({((1,),): 1}, {((1,),)}, frozenset([((1,),)]), {(frozenset((1,)),): 1}):
        with pytest.raises(ValueError, match="a key of tuples in tuples"):
            read(bad)
    with pytest.raises(ValueError, match="a key of tuples in tuples"):  # the older opcode
        InertReader({}).read(io.BytesIO(b"(((tt(td."))
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
