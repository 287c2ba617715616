"""Pickles read as data: a class or a function that a file names is described, never looked up.

The standard unpickler imports what a file names and calls it. This one goes through the same
opcodes (`pickletools` takes them apart) with a table of its own: plain values and containers come
back as they are, a few constructors that the caller admits are done by the caller's functions, and
everything else becomes an `Inert`. Nothing is imported, called, or asked for an attribute.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from bsq_jax.core.errors import UserError

# What an admitted constructor is called with: its arguments, and the text that lies below it on
# the stack, which is its key when it is the value of a dict.
Constructor = Callable[[tuple[Any, ...], str | None], Any]

_MARK = object()
_MAX_DEPTH = 100  # of nested settings
_PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


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


class InertReader:
    """Reads one pickle after the other from a file.

    The methods `build` and `persistent` may be replaced in a subclass.
    """

    def __init__(self, admitted: Mapping[tuple[str, str], Constructor]):
        """Sets up a reader.

        Args:
          admitted: functions that stand for (module, name).
        """
        self._admitted = dict(admitted)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: BinaryIO) -> Any:
        """The value of the pickle that begins here; the file is left where it ends.

        Raises:
          ValueError: it is not a whole pickle. Other exceptions of Python's own are possible with
            damaged ones, so callers should take any `Exception` for damage.
        """
        self._stack, self._memo = [], {}
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, arg)
        raise ValueError("the pickle has no end")

    def persistent(self, identity: Any) -> Any:
        """The object of a persistent id: an `Inert` of no module, unless a subclass knows more."""
        return Inert("", "persistent", (identity,))

    def build(self, value: Any, state: Any) -> Any:
        """What an object is once it has its state; here an `Inert` notes it, a dict drops it."""
        if isinstance(value, Inert):
            value.state = state
        elif not isinstance(value, dict):
            raise ValueError(f"a state for a {type(value).__name__}")
        return value

    # --- the stack ---

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value belongs")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    # --- the opcodes ---

    def _step(self, name: str, arg: Any) -> None:
        push = self._stack.append
        if name in _PUSH:
            push(arg)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[arg] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self._memo[arg])
        elif name == "MARK":
            push(_MARK)
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_mark()
        elif name == "DUP":
            push(self._top())
        elif name not in ("PROTO", "FRAME"):
            self._structure(name, arg)

    def _structure(self, name: str, arg: Any) -> None:
        """Opcodes that put values together."""
        push = self._stack.append
        if name == "TUPLE":
            push(tuple(self._pop_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple([self._pop() for _ in range(int(name[-1]))][::-1]))
        elif name == "LIST":
            push(self._pop_mark())
        elif name == "FROZENSET":
            push(frozenset(checked_keys(self._pop_mark())))
        elif name == "DICT":
            pairs = self._pop_mark()
            push(dict(zip(checked_keys(pairs[::2]), pairs[1::2], strict=True)))
        elif name == "APPEND":
            value = self._pop()
            self._add([value])
        elif name in ("APPENDS", "ADDITEMS"):
            self._add(self._pop_mark())
        elif name == "SETITEM":
            value, key = self._pop(), self._pop()
            self._set([(key, value)])
        elif name == "SETITEMS":
            flat = self._pop_mark()
            self._set(list(zip(flat[::2], flat[1::2], strict=True)))
        elif name in ("PERSID", "BINPERSID"):
            push(self.persistent(arg if name == "PERSID" else self._pop()))
        else:
            self._object(name, arg)

    def _object(self, name: str, arg: Any) -> None:
        """Opcodes that name classes and functions, or would call them."""
        push = self._stack.append
        if name == "GLOBAL":
            push(Inert(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            inner, module = self._pop(), self._pop()
            if not (isinstance(inner, str) and isinstance(module, str)):
                raise ValueError("a class whose name is not text")
            push(Inert(module, inner))
        elif name in ("EXT1", "EXT2", "EXT4"):
            push(Inert("copyreg", f"extension {arg}"))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = self._pop(), self._pop()
            push(self.construct(function, args))
        elif name == "NEWOBJ_EX":
            kwargs, args, function = self._pop(), self._pop(), self._pop()
            push(self.construct(function, args, kwargs))
        elif name == "OBJ":
            function, *args = self._pop_mark()
            push(self.construct(function, tuple(args)))
        elif name == "INST":
            push(self.construct(Inert(*arg.split(" ", 1)), tuple(self._pop_mark())))
        elif name == "BUILD":
            state, value = self._pop(), self._pop()
            built = self.build(value, state)
            if built is not value:  # later references must find it too
                for key, known in self._memo.items():
                    if known is value:
                        self._memo[key] = built
            push(built)
        else:
            raise ValueError(f"the opcode {name}")

    def _add(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(checked_keys(values))
        else:
            raise ValueError(f"items for a {type(target).__name__}")

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.entries.extend(pairs)
        elif isinstance(target, dict):
            checked_keys(key for key, _ in pairs)
            target.update(pairs)
        else:
            raise ValueError(f"entries for a {type(target).__name__}")

    def construct(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """Stands for ``function(*args, **kwargs)``: an admitted constructor's value or an `Inert`.

        Raises:
          ValueError: `function` is no description of one, or the arguments are not a tuple.
        """
        if not (isinstance(function, Inert) and isinstance(args, tuple)):
            raise ValueError("a call of something that is no function")
        if kwargs is not None and not isinstance(kwargs, dict):
            raise ValueError("keyword arguments that are no dict")
        own = self._admitted.get((function.module, function.name))
        if own is not None and function.args is None and not kwargs:
            below = self._stack[-1] if self._stack else None
            return own(args, below if isinstance(below, str) else None)
        return Inert(function.module, function.name, args, kwargs)


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


def plain(value: Any) -> Any:
    """Settings as dicts, lists and scalars.

    Understands what OmegaConf's containers and nodes and argparse's Namespace leave behind. Other
    inert objects stay as they are.

    Args:
      value: anything that an `InertReader` returned.

    Raises:
      UserError: nested more than 100 deep, or in itself.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, known: dict[int, Any]) -> Any:
    if id(value) in known:  # what is referred to twice is converted once, else it could explode
        return known[id(value)]
    if depth > _MAX_DEPTH:
        raise UserError(f"the file holds settings nested more than {_MAX_DEPTH} deep")
    inner, result = _wrapped(value), value
    if inner is not value:
        result = _plain(inner, depth + 1, known)
    elif isinstance(value, dict):
        result = {key: _plain(item, depth + 1, known) for key, item in value.items()}
    elif isinstance(value, list):
        result = [_plain(item, depth + 1, known) for item in value]
    known[id(value)] = result
    return result


def _wrapped(value: Any) -> Any:
    """What a container or node of settings holds; anything else itself."""
    if isinstance(value, Inert) and isinstance(value.state, dict):
        if value.module.split(".")[0] == "omegaconf":
            for field in ("_content", "_val"):
                if field in value.state:
                    return value.state[field]
        if (value.module, value.name) == ("argparse", "Namespace"):
            return value.state
    return value
