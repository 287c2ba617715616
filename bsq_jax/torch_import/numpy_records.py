"""Numpy's arrays and numbers, made from what a pickle says about them.

Numpy pickles an array as a call of ``_reconstruct``, whose result gets shape, dtype and bytes as
its state, and a number as a call of ``scalar``. The functions here take both from the `Inert`
records of a `SafeUnpickler`; nothing that a file names is called, and memory is taken for bytes
that are there, not for sizes that a file claims.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bsq_jax.torch_import.safe_pickle import Inert

_KINDS = "biufc"
_MAX_AXES = 64  # of numpy 2
_MAX_COUNT = 2**48  # along one axis; the product of numbers without bound could take forever
# The second name since numpy 2; looking the first one up would warn there.
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
SCALARS = tuple((module, "scalar") for module in _MODULES)
"""(module, name) of the functions that make numbers of numpy."""


class DamagedError(ValueError):
    """Says in a few words what is wrong with a record; the reader of the file says where."""


class NotNumbersError(DamagedError):
    """The record is of text, objects, dates and the like: maybe in order, but not of numbers."""


def _dtype(described: Any) -> np.dtype:
    """The dtype of a record: a letter and a size, and a state with the byte order."""
    if not isinstance(described, Inert) or (described.module, described.name) != ("numpy", "dtype"):
        raise NotNumbersError("an array that is not made of numbers")
    code = described.args[0] if described.args else None
    if not isinstance(code, str):
        raise NotNumbersError("an array that is not made of numbers")
    if not (code[:1] in (*_KINDS,) and code.isascii() and code[1:].isdigit() and len(code) < 4):
        raise NotNumbersError(f"values of type {code[:20]!a} instead of numbers")
    try:
        dtype = np.dtype(code)
    except TypeError:  # long doubles are not the same on all machines
        raise NotNumbersError(f"values of type {code!a}, which this machine has not") from None
    if described.state is None:
        return dtype
    _, order, subarray, names, fields, *_ = described.state
    if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
        raise NotNumbersError("values that are not plain numbers")
    return dtype.newbyteorder(order)


def _filled(shape: Any, described: Any, order: Any, data: Any) -> np.ndarray:
    """A view of `data`, which must be exactly the bytes that the array needs."""
    dtype = _dtype(described)
    if not isinstance(data, bytes):
        raise DamagedError("an array without its bytes")
    counts = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < _MAX_COUNT for n in shape)
    if not counts or len(shape) > _MAX_AXES:
        raise DamagedError("an impossible array shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DamagedError("an array whose bytes do not fit its shape")
    return np.ndarray(shape, dtype, data, order="F" if order else "C")


def numpy_scalar(args: tuple[Any, ...]) -> np.ndarray:
    """The number that numpy's ``scalar(*args)`` is, as a read-only array without axes.

    Raises:
      NotNumbersError: it is text, a date, or something else that is no number.
      DamagedError: its bytes are too few or too many.
    """
    if len(args) != 2:
        raise DamagedError("a number without its bytes")
    return _filled((), args[0], False, args[1])


def numpy_array(value: Any) -> np.ndarray | None:
    """The array that a record describes, or None where it does not describe one.

    Args:
      value: what a `SafeUnpickler` returned. Records of numpy's arrays and numbers become arrays,
        those of subclasses of its arrays do not.

    Returns:
      A read-only array in the byte order of the file, a view of the bytes in the record.

    Raises:
      NotNumbersError: the record is one of an array of something else than numbers.
      DamagedError: it is one of an array that cannot be.
    """
    if not isinstance(value, Inert) or value.module not in _MODULES or not value.args:
        return None
    if value.name == "scalar":
        return numpy_scalar(value.args)
    kind = value.args[0]
    if value.name != "_reconstruct" or not isinstance(kind, Inert) or kind.args is not None:
        return None
    if (kind.module, kind.name) != ("numpy", "ndarray"):
        return None
    if value.state is None:
        raise DamagedError("an array without values")
    _, shape, described, order, data = value.state
    return _filled(shape, described, order, data)
