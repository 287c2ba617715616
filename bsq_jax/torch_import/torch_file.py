"""Files of ``torch.save``, read without PyTorch and without running anything that is in them.

Two formats exist. Since PyTorch 1.6 a file is a zip archive: a pickle in which each tensor refers
to a storage, and one entry for each storage. Before, it was five pickles in a row (a magic number,
a version, facts on the machine, the object, the storages' names) and then the storages.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.torch_import.numpy_records import SCALARS, NotNumbersError, numpy_array, numpy_scalar
from bsq_jax.torch_import.safe_pickle import Constructor, Inert, SafeUnpickler, checked_keys

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_DTYPES = {*_STORAGES.values(), "uint16", "uint32", "uint64"}
_MAX_AXES = 64  # of numpy 2


class _UnreadableError(Exception):
    """Why a file cannot be read, damaged or not, in words that go behind its name."""


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _decode(data: bytes, dtype: str, order: Literal["<", ">"]) -> np.ndarray:
    """Flat array of a storage's bytes; half precision of both kinds becomes float32."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "bool":
        return np.frombuffer(data, np.uint8) != 0
    stored = np.dtype(dtype).newbyteorder(order)
    array = np.frombuffer(data, stored)
    return array.astype(np.float32 if dtype == "float16" else dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A reference to a storage: its name, and `count` items of `dtype` from item `start` on."""

    key: Any
    dtype: str
    count: int
    start: int = 0


class _TorchUnpickler(SafeUnpickler):
    """Turns descriptions of tensors into arrays.

    Attributes:
      dtypes: the dtype of every storage met, by its key.
    """

    def __init__(
        self,
        file: BinaryIO,
        load: Callable[[Any], bytes] | None,
        order: Literal["<", ">"] = "<",
    ):
        """Sets up an unpickler.

        Args:
          file: read from its position on.
          load: gives the bytes of a storage; None leaves out all tensors, to learn the dtypes.
          order: ``<`` or ``>``, of the storages.
        """
        rebuild: dict[tuple[str, str], Constructor] = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): lambda args, _: args[0],
            ("torch._utils", "_rebuild_parameter_with_state"): lambda args, _: args[0],
            # A tensor that carries attributes: (function, class, its arguments, attributes).
            ("torch._tensor", "_rebuild_from_type_v2"): lambda args, _: self.construct(
                args[0], args[2]
            ),
            ("torch", "Size"): lambda args, _: tuple(*args),
            ("collections", "OrderedDict"): _ordered_dict,
            ("collections", "defaultdict"): lambda _, __: {},
            ("_codecs", "encode"): _encode,
            ("copyreg", "_reconstructor"): lambda args, _: self.construct(args[0], ()),
        }
        for module, name in SCALARS:
            rebuild[module, name] = functools.partial(_number, module, name)
        for module in ("builtins", "__builtin__"):
            rebuild[module, "bytes"] = functools.partial(_no_bytes, module)
            rebuild[module, "set"] = lambda args, _: set(checked_keys(*args))
            rebuild[module, "frozenset"] = lambda args, _: frozenset(checked_keys(*args))
        super().__init__(file, rebuild)
        self._read = load
        self._order = order
        self._loaded: dict[Any, np.ndarray] = {}
        self.dtypes: dict[Any, str] = {}

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ``("storage", type, key, device, count)``, once with a view behind it."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # the old format keeps a module's source beside its class
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise _UnreadableError("has a reference that is not one to a storage")
        kind, key, _, count = pid[1:5]
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Inert) else None
        if dtype is None or not kind.module.startswith("torch"):
            return Inert("torch", "Storage", pid)
        start = 0
        if len(pid) > 5 and pid[5] is not None:
            _, start, count = pid[5]
        if not (isinstance(key, str | int) and _counts((count, start))):
            raise _UnreadableError("has a reference that is not one to a storage")
        self.dtypes.setdefault(key, dtype)
        return _Storage(key, dtype, count, start)

    def build(self, value: Any, state: Any) -> Any:
        """Numpy's arrays become arrays once they have their state, if they are of numbers."""
        built = super().build(value, state)
        try:
            array = numpy_array(built)
        except NotNumbersError:
            array = None
        return built if array is None else array

    def _storage(self, storage: _Storage, dtype: str) -> np.ndarray:
        """The items of a storage; each is read once, whoever shares it."""
        assert self._read is not None
        if (storage.key, dtype) not in self._loaded:
            self._loaded[storage.key, dtype] = _decode(self._read(storage.key), dtype, self._order)
        first = storage.start * _item_size(storage.dtype) // _item_size(dtype)
        count = storage.count * _item_size(storage.dtype) // _item_size(dtype)
        items = self._loaded[storage.key, dtype]
        if first + count > items.size:
            raise _UnreadableError(
                f"is damaged: storage {storage.key} has {items.size} numbers "
                f"instead of {first + count}"
            )
        return items[first : first + count]

    def _tensor(self, args: tuple[Any, ...], key: str | None) -> Any:
        storage, offset, size, strides = args[:4]
        return self._view(storage, offset, size, strides, key, None, args)

    def _tensor_of_dtype(self, args: tuple[Any, ...], key: str | None) -> Any:
        storage, offset, size, strides = args[:4]
        name = args[6].name if isinstance(args[6], Inert) else ""
        if name not in _DTYPES:
            return Inert("torch._utils", "_rebuild_tensor_v3", args)
        return self._view(storage, offset, size, strides, key, name, args)

    def _view(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        strides: Any,
        key: str | None,
        dtype: str | None,
        args: tuple[Any, ...],
    ) -> Any:
        """The view of a storage that a tensor is; never one that leaves the storage."""
        if isinstance(storage, Inert):  # of a type that numpy does not have
            return Inert("torch._utils", "_rebuild_tensor", args)
        if not isinstance(storage, _Storage):
            raise _UnreadableError(f"is damaged: {_named(key)} has no storage")
        if self._read is None:
            return None
        try:
            items = self._storage(storage, dtype or storage.dtype)
        except _UnreadableError as error:
            raise _UnreadableError(f"{error} (for {_named(key)})") from None
        good = isinstance(size, tuple) and isinstance(strides, tuple) and len(size) == len(strides)
        if not (good and len(size) <= _MAX_AXES and _counts((offset, *size, *strides))):
            raise _UnreadableError(
                f"is damaged: {_named(key)} has a shape or strides that cannot be"
            )
        if 0 in size:
            return np.zeros(size, items.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, strides, strict=True))
        if last >= items.size:
            raise _UnreadableError(
                f"is damaged: {_named(key)} reaches beyond its storage of {items.size} numbers"
            )
        # Strides of 0 could ask for any amount of memory later on; parameters have none.
        if math.prod(size) > items.size:
            raise _UnreadableError(
                f"is damaged: {_named(key)} repeats the {items.size} numbers of its storage, "
                "which no parameter does"
            )
        return np.ndarray(
            size,
            items.dtype,
            items.data,
            offset * items.itemsize,
            tuple(step * items.itemsize for step in strides),
        )


def _named(key: str | None) -> str:
    return f"'{key}'" if key else "a tensor"


def _counts(values: tuple[Any, ...]) -> bool:
    """Whether all are whole numbers that a file could hold that many of."""
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


# --- constructors that are not PyTorch's own ---


def _number(module: str, name: str, args: tuple[Any, ...], _: str | None) -> Any:
    """A number of numpy as Python's own; its text and dates stay descriptions."""
    try:
        return numpy_scalar(args).item()
    except NotNumbersError:
        return Inert(module, name, args)


def _no_bytes(module: str, args: tuple[Any, ...], _: str | None) -> Any:
    """Empty bytes, which pickles of protocol 2 write as a call; that of an empty array has it."""
    return Inert(module, "bytes", args) if args else b""


def _encode(args: tuple[Any, ...], _: str | None) -> bytes:
    """Bytes, which pickles of protocol 2 write as the text with those code points."""
    text, encoding = args
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _ordered_dict(args: tuple[Any, ...], _: str | None) -> dict[Any, Any]:
    """A dict; old pickles list its pairs as an argument, others set them one by one."""
    pairs = [(key, value) for key, value in args[0]] if args else []
    checked_keys(key for key, _ in pairs)
    return dict(pairs)


# --- the two formats ---


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise _UnreadableError("is a zip archive, but not one of torch.save")
        root = names[0].removesuffix("data.pkl")

        def entry(name: str) -> bytes:
            try:
                info = archive.getinfo(root + name)
            except KeyError:
                raise _UnreadableError(f"is damaged: it has no entry {root}{name}") from None
            if info.compress_type != zipfile.ZIP_STORED:  # torch.save compresses nothing
                raise _UnreadableError(f"has a compressed entry {root}{name}: save it again")
            return archive.read(info)

        big = f"{root}byteorder" in archive.namelist() and entry("byteorder") == b"big"
        pickled = io.BytesIO(entry("data.pkl"))
        return _TorchUnpickler(
            pickled, lambda key: entry(f"data/{key}"), ">" if big else "<"
        ).load()


def _read_legacy(file: BinaryIO) -> Any:
    try:
        magic = SafeUnpickler(file).load()
    except Exception:
        magic = None
    if magic != _LEGACY_MAGIC:
        raise _UnreadableError("is not a file of torch.save, or damaged at its beginning")
    if (protocol := SafeUnpickler(file).load()) != _LEGACY_PROTOCOL:
        raise _UnreadableError(f"has version {protocol!r} of the old format: save it again")
    machine = SafeUnpickler(file).load()
    little = not isinstance(machine, dict) or machine.get("little_endian", True)
    beginning = file.tell()
    # Storages come last, and do not say how large their items are: the first pass learns that.
    scout = _TorchUnpickler(file, None)
    scout.load()
    keys = SafeUnpickler(file).load()
    size = os.fstat(file.fileno()).st_size
    storages: dict[Any, bytes] = {}
    for key in keys:
        if not isinstance(key, str | int) or key not in scout.dtypes:
            raise _UnreadableError("is damaged: nothing says what one of its storages holds")
        (count,) = struct.unpack("<q" if little else ">q", file.read(8))
        length = count * _item_size(scout.dtypes[key])
        if not 0 <= length <= size - file.tell():
            raise _UnreadableError(f"is damaged: it ends inside storage {key}")
        storages[key] = file.read(length)

    def load(key: Any) -> bytes:
        if key not in storages:
            raise _UnreadableError(f"is damaged: it has no storage {key}")
        return storages[key]

    file.seek(beginning)
    return _TorchUnpickler(file, load, "<" if little else ">").load()


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Reads what ``torch.save`` wrote, in the zip format or the one before PyTorch 1.6.

    Args:
      path: the file.

    Returns:
      What was saved: dicts, lists, tuples, sets, text and numbers as they are; tensors, parameters
      and numpy arrays of numbers as numpy arrays, read-only, tensors of half precision (float16
      and bfloat16) as float32; every other object, function or class as `Inert`, which
      `plain_settings.plain` unwraps where it holds settings. Nothing in the file is imported or
      called.

    Raises:
      UserError: the file does not exist, cannot be opened, is damaged, or of another kind.
    """
    file_path: pathlib.Path = local_path(path)
    try:
        opened = file_path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{file_path} does not exist: give a file of torch.save") from None
    except IsADirectoryError:
        raise UserError(f"{file_path} is a folder: give a file of torch.save") from None
    except OSError as error:
        raise UserError(
            f"{file_path} cannot be opened ({error.strerror}): give a file that you may read"
        ) from error
    try:
        with opened as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_zip(file) if is_zip else _read_legacy(file)
    except _UnreadableError as error:
        raise UserError(f"{file_path} {error}") from None
    except Exception as error:  # whatever damage makes of zip files and pickles
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise UserError(
            f"{file_path} is damaged or not a file of torch.save ({reason[:200]}): "
            "copy or download it again"
        ) from error
