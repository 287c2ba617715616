"""Writes what torch.save writes, without PyTorch, from a description of each tensor and object."""

import dataclasses
import io
import pickle
import zipfile

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by its name; calling it is what a pickle would ask for."""

    module: str
    name: str

    def __call__(self):
        raise AssertionError


@dataclasses.dataclass(eq=False)
class Storage:
    """Numbers under a key; `kind` overrides the storage's type, `count` the number it claims."""

    key: str
    numbers: np.ndarray
    kind: str = ""
    count: int | None = None


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage, in items."""

    storage: Storage
    offset: int
    size: tuple
    strides: tuple


@dataclasses.dataclass(eq=False)
class Object:
    """An object by its constructor, arguments and state."""

    module: str
    name: str
    args: tuple = ()
    state: object = None


@dataclasses.dataclass(eq=False)
class Pickled:
    """An array or number of numpy that is pickled as numpy does it."""

    value: np.ndarray | np.generic


class Writer(pickle._Pickler):
    """Arrays become tensors with a storage of their own; stand-ins become what they stand for."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages[value.key] = value
        kind = Global("torch", value.kind or STORAGES[value.numbers.dtype.name])
        count = value.numbers.size if value.count is None else value.count
        return ("storage", kind, value.key, "cpu", count)

    def reducer_override(self, value):
        if isinstance(value, Global):
            return "by name"
        if isinstance(value, Pickled):
            return self._by_name(value.value.__reduce__())
        if isinstance(value, Object):
            return Global(value.module, value.name), value.args, value.state
        if isinstance(value, np.ndarray):
            storage = Storage(str(len(self.storages)), value.ravel())
            strides = np.ascontiguousarray(value).strides if value.ndim else ()
            strides = tuple(stride // value.itemsize for stride in strides)
            value = Tensor(storage, 0, value.shape, strides)
        if isinstance(value, Tensor):
            function = Global("torch._utils", "_rebuild_tensor_v2")
            hooks = Object("collections", "OrderedDict")
            return function, (
                *(value.storage, value.offset, value.size, value.strides),
                *(False, hooks),
            )
        return NotImplemented

    def _by_name(self, value):
        """What numpy says of itself, its functions and classes by their names alone."""
        if isinstance(value, tuple):
            return tuple(map(self._by_name, value))
        if isinstance(value, np.dtype):
            return Object("numpy", "dtype", *map(self._by_name, value.__reduce__()[1:]))
        if callable(value):
            return Global(value.__module__, value.__name__)
        return value

    def save_global(self, value, name=None):
        if not isinstance(value, Global):
            return super().save_global(value, name)
        self.write(f"c{value.module}\n{value.name}\n".encode())
        self.memoize(value)
        return None


def pickled(value):
    """``(bytes, storages by key)`` of a value."""
    file = io.BytesIO()
    writer = Writer(file)
    writer.dump(value)
    return file.getvalue(), writer.storages


def save_zip(path, value, *, order="little", leave_out=()):
    """Writes the format since PyTorch 1.6."""
    data, storages = pickled(value)
    entries = {"data.pkl": data, "byteorder": order.encode(), "version": b"3\n"}
    for key, storage in storages.items():
        numbers = storage.numbers
        if order == "big":
            numbers = numbers.astype(numbers.dtype.newbyteorder(">"))
        entries[f"data/{key}"] = numbers.tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name not in leave_out:
                archive.writestr(f"archive/{name}", content)


def save_legacy(path, value):
    """Writes the format before it."""
    data, storages = pickled(value)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump(machine, file, protocol=2)
        file.write(data)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            numbers = storages[key].numbers
            file.write(numbers.size.to_bytes(8, "little") + numbers.tobytes())
