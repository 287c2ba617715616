"""Pickles read as data: a class or a function that a file names is recorded, never looked up.

`SafeUnpickler` is Python's own unpickler with the steps replaced that could run code of the file's
choosing: plain values and containers come back as they are, a few constructors that the caller
admits are done by the caller's functions, and everything else becomes an `Inert`. Nothing is
imported, called, or asked for an attribute.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, ClassVar

# What an admitted constructor is called with: its arguments, and the text that lies below it on
# the stack, which is its key when it is the value of a dict.
Constructor = Callable[[tuple[Any, ...], str | None], Any]


class Inert:
    """What a pickle says about a class, a function, or an object, and nothing more.

    Attributes:
      module: the module that the pickle names.
      name: the class or function in it.
      args: constructor arguments; None for the class or function itself.
      kwargs: keyword arguments of the constructor.
      state: what the object was to be restored from, mostly a dict of its attributes.
      items: values that were appended or added.
      entries: (key, value) pairs that were set.
    """

    __slots__ = ("args", "entries", "items", "kwargs", "module", "name", "state")

    def __init__(
        self,
        module: str,
        name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ):
        self.module = module
        self.name = name
        self.args = args
        self.kwargs = dict(kwargs or {})
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: list[tuple[Any, Any]] = []

    def __repr__(self) -> str:
        """The name alone: contents may be huge, or refer to themselves."""
        return f"<Inert {self.module}.{self.name}>"

    # What the unpickler calls for the opcodes that append, add and set.

    def append(self, item: Any) -> None:
        """Records an item."""
        self.items.append(item)

    add = append

    def extend(self, items: Iterable[Any]) -> None:
        """Records items."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Records an entry."""
        self.entries.append((key, value))


def checked_keys(keys: Iterable[Any]) -> list[Any]:
    """Keys of dicts or members of sets, which may be tuples, but not tuples of tuples.

    A few bytes can describe tuples in tuples so deep, or so often the same ones, that Python's
    hash or comparison of them would overflow the stack, or take longer than anyone can wait.

    Raises:
      ValueError: there is such a key.
    """
    keys = list(keys)
    nested = (tuple, frozenset)
    for key in keys:
        if isinstance(key, nested) and any(isinstance(item, nested) for item in key):
            raise ValueError("a key of tuples in tuples")
    return keys


# The unpickler in Python, not the one in C that `pickle.Unpickler` names. The latter keeps its memo
# in a table, so a slot number of 2**31 in a file of a few bytes takes 32 GB, and its steps cannot
# be replaced. Its `dispatch`, a function for each opcode, is what subclasses elsewhere replace too.
_Python: Any = pickle._Unpickler


class SafeUnpickler(_Python):
    """Reads one pickle from a file; `load` leaves the file where the pickle ends.

    `load` may raise any `Exception` for a damaged file. The methods `build` and `persistent_load`
    may be replaced in a subclass.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Python.dispatch)
    # It would take the memory that a file claims to need; torch.save and numpy do not write it.
    del dispatch[pickle.BYTEARRAY8[0]]

    def __init__(
        self, file: BinaryIO, admitted: Mapping[tuple[str, str], Constructor] | None = None
    ):
        """Sets up an unpickler.

        Args:
          file: read from its position on.
          admitted: functions that stand for (module, name).
        """
        super().__init__(file, encoding="latin1")
        self._admitted = dict(admitted or {})

    def find_class(self, module: str, name: str) -> Inert:
        """The record of a class or a function."""
        return Inert(module, name)

    def get_extension(self, code: int) -> None:
        """Pushes the record of a class that the writer had registered under a number."""
        self.append(Inert("copyreg", f"extension {code}"))

    def persistent_load(self, pid: Any) -> Any:
        """The object of a persistent id: an `Inert` of no module, unless a subclass knows more."""
        return Inert("", "persistent", (pid,))

    def build(self, value: Any, state: Any) -> Any:
        """What an object is once it has its state; here an `Inert` notes it, a dict drops it."""
        if isinstance(value, Inert):
            value.state = state
        elif not isinstance(value, dict):
            raise ValueError(f"a state for a {type(value).__name__}")
        return value

    def construct(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """Stands for ``function(*args, **kwargs)``: an admitted constructor's value or an `Inert`.

        Raises:
          ValueError: `function` is no record of one, or the arguments are not a tuple.
        """
        if not (isinstance(function, Inert) and isinstance(args, tuple)):
            raise ValueError("a call of something that is no function")
        if kwargs is not None and not isinstance(kwargs, dict):
            raise ValueError("keyword arguments that are no dict")
        own = self._admitted.get((function.module, function.name))
        if own is not None and function.args is None and not kwargs:
            below = self.stack[-1] if self.stack else None
            return own(args, below if isinstance(below, str) else None)
        return Inert(function.module, function.name, args, kwargs)

    # --- the opcodes that would call something of the file's choosing ---

    def _instantiate(self, klass: Any, args: list[Any]) -> None:  # of INST and OBJ
        self.append(self.construct(klass, tuple(args)))

    def _load_call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(self.construct(function, args))

    def _load_call_with_keywords(self) -> None:
        kwargs, args, function = (self.stack.pop() for _ in range(3))
        self.append(self.construct(function, args, kwargs))

    def _load_build(self) -> None:
        state, value = self.stack.pop(), self.stack.pop()
        built = self.build(value, state)
        if built is not value:  # later references must find it too
            self.memo.update({key: built for key, known in self.memo.items() if known is value})
        self.append(built)

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _load_call
    dispatch[pickle.NEWOBJ_EX[0]] = _load_call_with_keywords
    dispatch[pickle.BUILD[0]] = _load_build


def _with_checks(opcode: bytes, keys: slice, target: type | None, above: bool) -> None:
    """Puts checks of the keys, and of what they are for, before a step of `SafeUnpickler`.

    Args:
      opcode: of the step.
      keys: where the keys are among the values on the stack, above the last mark.
      target: type of the container that is added to, unless it is an `Inert`; None: a new one.
      above: whether a mark lies between the container and the values.
    """
    load = SafeUnpickler.dispatch[opcode[0]]

    def checked(self: Any) -> None:
        checked_keys(self.stack[keys])
        if target is not None:
            into = self.metastack[-1][-1] if above else self.stack[-3]
            if not isinstance(into, target | Inert):
                raise ValueError(f"entries for a {type(into).__name__}")
        load(self)

    SafeUnpickler.dispatch[opcode[0]] = checked


_with_checks(pickle.FROZENSET, slice(None), None, True)
_with_checks(pickle.DICT, slice(0, None, 2), None, True)
_with_checks(pickle.ADDITEMS, slice(None), set, True)
_with_checks(pickle.SETITEMS, slice(0, None, 2), dict, True)
_with_checks(pickle.SETITEM, slice(-2, -1), dict, False)
