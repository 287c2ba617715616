"""Weight files inside other packages: finding them, and reading their pickles without trust.

Unpickling runs what a file names. Here pickles are read as data
(`bsq_jax.torch_import.safe_pickle`): no function named by a file is called, arrays are rebuilt from
their bytes, and everything else is refused.
"""

import importlib.util
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.torch_import.numpy_records import DamagedError, numpy_array
from bsq_jax.torch_import.safe_pickle import Inert, SafeUnpickler


class _RefusedError(DamagedError):
    """Names what a file may not load."""


class _Tree:
    """Nested dicts of arrays made from what a `SafeUnpickler` returned.

    Attributes:
      budget: bytes that arrays may still take. All of them came from the file, so a file whose
        records share their bytes cannot become larger in memory than it is.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self._arrays: dict[int, np.ndarray] = {}
        self._dicts: set[int] = set()

    def dicts(self, value: Any) -> dict[str, Any]:
        """A dict met twice would be a tree without end, or without bound."""
        if isinstance(value, Inert):
            raise _RefusedError(_name(value))
        if not isinstance(value, dict) or id(value) in self._dicts:
            raise DamagedError("something other than a dict of arrays")
        self._dicts.add(id(value))
        if not all(type(key) is str for key in value):
            raise DamagedError("keys that are not text")
        return {key: self._item(item) for key, item in value.items()}

    def _item(self, item: Any) -> Any:
        if id(item) not in self._arrays:
            array = numpy_array(item)
            if array is None:
                return self.dicts(item)
            self._arrays[id(item)] = self._own(array)
        return self._arrays[id(item)]  # an array met twice stays one array

    def _own(self, array: np.ndarray) -> np.ndarray:
        """A writable copy: float32 or integers, in the byte order of this machine."""
        self.budget -= array.nbytes
        if self.budget < 0:
            raise DamagedError("arrays that share their bytes")
        if array.dtype.kind in "iu":
            return np.array(array, array.dtype.newbyteorder("="), order="C")
        if array.dtype.kind != "f":
            raise DamagedError(f"values of type '{array.dtype.name}' instead of numbers")
        with np.errstate(all="ignore"):  # what overflows is reported in the next lines
            copy = np.array(array, np.float32, order="C")
        if not np.isfinite(copy).all():
            raise DamagedError("values that are not finite")
        return copy


def _name(record: Inert) -> str:
    """What a record names; of a subclass of numpy's arrays the class."""
    if record.name == "_reconstruct" and record.args and isinstance(record.args[0], Inert):
        record = record.args[0]
    return ascii(f"{record.module}.{record.name}"[:100])


def _cure(path: pathlib.Path) -> str:
    """How to get a file again: its package is the outermost folder above it that is one."""
    packages = [folder.name for folder in path.parents if (folder / "__init__.py").is_file()]
    if packages:
        return f"get it anew with: pip install --force-reinstall {packages[-1]}"
    return "get the file anew"


def load_pickled(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a pickle that holds nested dicts of numpy arrays, and nothing else.

    Nothing in the file is executed, and nothing in it can make this raise anything but one line.
    Pickle protocols 3 and 4, as numpy 1 and numpy 2 write them.

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
        # Of bytes in memory: a file object would take the memory that a damaged length asks for.
        return _Tree(len(data)).dicts(SafeUnpickler(io.BytesIO(data)).load())
    except _RefusedError as error:
        reason = f"refused, it wants to load {error} and weight files may hold arrays only"
        raise UserError(f"{path}: {reason}; {_cure(path)}") from error
    except Exception as error:  # whatever damage makes of a pickle
        reason = str(error) if isinstance(error, DamagedError) else "it makes no sense"
        line = f"{path}: not a readable file of weights ({reason}); {_cure(path)}"
        raise UserError(line) from error


def checked_array(
    tree: Mapping[str, Any], keys: Sequence[str], shape: tuple[int, ...], path: pathlib.Path
) -> np.ndarray:
    """The array at some place of what `load_pickled` returned.

    Args:
      tree: nested dicts.
      keys: the place, from the outside in.
      shape: the only one that will do.
      path: the file, for the message.

    Raises:
      UserError: there is no float32 array of this shape at this place.
    """
    found: Any = tree
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    # Dicts have no dtype: only a float array of the right shape passes.
    has = found.shape if getattr(found, "dtype", None) == np.float32 else None
    if has != shape:
        state = f"has shape {list(has)}" if has is not None else "is missing"
        raise UserError(
            f"{path}: {' > '.join(keys)} {state}, float32 {list(shape)} is needed; {_cure(path)}"
        )
    return found


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
