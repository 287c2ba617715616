"""Weight files inside other packages: finding them, and reading their pickles without trust.

A pickle is a program, and the usual reader runs whatever it names. The reader here understands
the few instructions that nested dicts of numpy arrays need; arrays are rebuilt from their bytes by
this module, no function named by a file is ever called, and everything else is refused.
"""

import importlib.util
import math
import pathlib
import pickle
import struct
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError

# The same things before and after numpy 2 moved them; looking the old names up would warn there.
_ADMITTED = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "_reconstruct",
    "numpy._core.multiarray _reconstruct": "_reconstruct",
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray scalar": "scalar",
}
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
# How the number, or the length, that follows an instruction is stored.
_INTEGERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H"}
_TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
_BYTES = {pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.BINBYTES8: "<Q"}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_SKIPPED = {pickle.PROTO: 1, pickle.FRAME: 8}  # bytes of an argument that says nothing new

# What bytes that make no sense can raise below, beside _DamagedError.
_BROKEN = (LookupError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError)


class _DamagedError(ValueError):
    """Says what is wrong with the content of a file."""


class _RefusedError(_DamagedError):
    """Names what a file may not load."""


class _Name(str):
    """The name of a function or class: never the thing itself."""


class _Dtype:
    """A number format under construction: its kind and size, then its byte order."""

    def __init__(self, code: Any, *_: Any):
        if code not in _NUMBERS:
            raise _DamagedError(f"values of type {ascii(code)[:40]} instead of numbers")
        self.code = code
        self.order = "="

    def set_state(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise _DamagedError("values that are not plain numbers")
        self.order = order

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array under construction: empty, then filled from its bytes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Dtype) or not isinstance(raw, bytes):
            raise _DamagedError("arrays that are not made of numbers")
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise _DamagedError("an impossible array shape")
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise _DamagedError("an array whose bytes do not fit its shape")
        self.value = np.ndarray(shape, dtype, raw, order="F" if fortran else "C")


class _Machine:
    """Runs the instructions of a pickle that build dicts of arrays; refuses all others."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise _DamagedError("it ends too early")
        self.at += count
        return taken

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        return self.take(end + 1 - self.at)[:-1].decode("ascii")

    def pop(self, count: int) -> list[Any]:
        """The last `count` values, in the order in which they were pushed."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise _DamagedError("a value is missing")
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def fill(self, items: list[Any]) -> None:
        """Puts keys and values, alternating, into the dict on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _DamagedError("something other than a dict of arrays")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _DamagedError("keys that are not text")
            target[key] = value

    def push_name(self, name: str) -> None:
        if name not in _ADMITTED:
            raise _RefusedError(ascii(name.replace(" ", "."))[:100])
        self.stack.append(_Name(_ADMITTED[name]))

    def call(self) -> None:
        """What the admitted names stand for: an empty array, a number format, a scalar."""
        name, arguments = self.pop(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _DamagedError("a call of something that cannot be called")
        made: _Array | _Dtype
        if name == "dtype":
            made = _Dtype(*arguments)
        elif name == "_reconstruct" and isinstance(arguments[0], _Name):
            made = _Array()
        elif name == "scalar":
            made = _Array()
            made.set_state((1, (), arguments[0], False, arguments[1]))
        else:
            raise _DamagedError("an array of an unknown kind")
        self.stack.append(made)

    def build(self) -> None:
        (state,) = self.pop(1)
        target = self.stack[-1]
        if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
            raise _DamagedError("something other than a dict of arrays")
        target.set_state(state)

    def step(self, op: bytes) -> None:
        push = self.stack.append
        if op in _CONSTANTS:
            push(_CONSTANTS[op])
        elif op in _INTEGERS:
            push(self.number(_INTEGERS[op]))
        elif op in _TEXTS:
            push(self.take(self.number(_TEXTS[op])).decode("utf-8"))
        elif op in _BYTES:
            push(self.take(self.number(_BYTES[op])))
        elif op in _GETS:
            push(self.memo[self.number(_GETS[op])])
        elif op in _PUTS:
            self.memo[self.number(_PUTS[op])] = self.stack[-1]
        elif op in _TUPLES:
            push(tuple(self.pop(_TUPLES[op])))
        elif op in _SKIPPED:
            self.take(_SKIPPED[op])
        elif op == pickle.MEMOIZE:
            self.memo[len(self.memo)] = self.stack[-1]
        elif op == pickle.MARK:
            self.marks.append(len(self.stack))
        elif op == pickle.TUPLE:
            push(tuple(self.pop_to_mark()))
        elif op == pickle.EMPTY_DICT:
            push({})
        elif op == pickle.SETITEM:
            self.fill(self.pop(2))
        elif op == pickle.SETITEMS:
            self.fill(self.pop_to_mark())
        elif op == pickle.GLOBAL:
            self.push_name(f"{self.line()} {self.line()}")
        elif op == pickle.STACK_GLOBAL:
            module, name = self.pop(2)
            self.push_name(f"{module} {name}")
        elif op == pickle.REDUCE:
            self.call()
        elif op == pickle.BUILD:
            self.build()
        else:
            raise _DamagedError("something other than a dict of arrays")

    def run(self) -> Any:
        while (op := self.take(1)) != pickle.STOP:
            self.step(op)
        if len(self.stack) != 1:
            raise _DamagedError("a value too many or too few")
        return self.stack[0]


def _arrays(value: Any, seen: set[int]) -> dict[str, Any]:
    """Dicts of finished arrays. A dict met twice would be a tree without end, or without bound."""
    if not isinstance(value, dict) or id(value) in seen:
        raise _DamagedError("something other than a dict of arrays")
    seen.add(id(value))
    found: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(item, _Array):
            found[key] = _arrays(item, seen)
            continue
        if item.value is None:
            raise _DamagedError("an array without values")
        if item.value.dtype.kind == "f":
            with np.errstate(all="ignore"):  # what overflows is reported in the next lines
                found[key] = np.array(item.value, np.float32, order="C")
            if not np.isfinite(found[key]).all():
                raise _DamagedError("values that are not finite")
        else:
            found[key] = np.array(item.value, item.value.dtype.newbyteorder("="), order="C")
    return found


def _cure(path: pathlib.Path) -> str:
    """How to get a file again: its package is the outermost folder above it that is one."""
    packages = [folder.name for folder in path.parents if (folder / "__init__.py").is_file()]
    if packages:
        return f"get it anew with: pip install --force-reinstall {packages[-1]}"
    return "get the file anew"


def load_pickled(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a pickle that holds nested dicts of numpy arrays, and nothing else.

    Nothing in the file is executed, and nothing in it can make this raise anything but one line.
    Pickle protocols 2 to 4, as numpy 1 and numpy 2 write them.

    Args:
      path: the file.

    Returns:
      Nested dicts with text keys; floating point arrays as float32, integers as they are.

    Raises:
      UserError: the file is missing, damaged, holds NaN or infinite values, or anything that is
        not a number; what it may not load is named.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_cure(path)}") from error
    try:
        return _arrays(_Machine(data).run(), set())
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused, it wants to load {error} and weight files may hold arrays only; "
            f"{_cure(path)}"
        ) from error
    except _BROKEN as error:
        reason = str(error) if isinstance(error, _DamagedError) else "it makes no sense"
        raise UserError(
            f"{path}: not a readable file of weights ({reason}); {_cure(path)}"
        ) from error


def package_file(package: str, *parts: str) -> pathlib.Path:
    """Path of a data file of an installed package, whose code is not imported.

    Args:
      package: name of a top-level package.
      *parts: folders and the file name below it.

    Raises:
      UserError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"package {package} is not installed; run: pip install {package}")
    for folder in spec.submodule_search_locations or ():
        path = pathlib.Path(folder, *parts)
        if path.is_file():
            return path
    raise UserError(
        f"package {package} lacks its file {'/'.join(parts)}; "
        f"run: pip install --force-reinstall {package}"
    )
