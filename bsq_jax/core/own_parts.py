"""Parts of the user's own that a config names: ``module:attribute(key=value)``.

There is no registry: the text says what to import, and the values in parentheses, literals alone,
are keyword arguments. `bsq_jax.config.own_parts` says which settings take such a text and where the
modules lie.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.machinery
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bsq_jax.core.errors import UserError

_NAME = r"[A-Za-z_]\w*"
_FORM = re.compile(rf"\s*({_NAME}(?:\.{_NAME})*):({_NAME})\s*(\(.*\))?\s*", re.DOTALL)


def is_own(text: str) -> bool:
    """Whether a text has the form ``module:attribute`` or ``module:attribute(...)``."""
    return _FORM.fullmatch(text) is not None


@dataclasses.dataclass(frozen=True)
class OwnPart:
    """Something in a module that a setting names.

    Attributes:
      key: the setting, for messages.
      text: what it says.
      module: the module's dotted name.
      attribute: a function or class in it.
      arguments: keyword arguments.
    """

    key: str
    text: str
    module: str
    attribute: str
    arguments: Mapping[str, Any]

    def error(self, reason: str) -> UserError:
        """What to raise about it."""
        return UserError(f"{self.key}={self.text}: {reason}")

    def load(self) -> Any:
        """The attribute; its module is imported if it is not yet.

        Raises:
          UserError: no such module, an error in it, no such attribute.
        """
        top = self.module.split(".")[0]
        if top in sys.stdlib_module_names:
            raise self.error(f"{top} is a module of Python itself: name one of your own")
        if self.module not in sys.modules:
            importlib.invalidate_caches()
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{self.module}.".startswith(f"{error.name}."):
                raise self.error(
                    f"there is no module {error.name}{_similar(error.name)}: give the folder it "
                    "lies in as --config.extensions=FOLDER, or put it on PYTHONPATH"
                ) from None
            raise self.error(where_and_what(error)) from error
        except UserError:
            raise
        except Exception as error:
            raise self.error(where_and_what(error)) from error
        self._check_origin(top)
        if not hasattr(module, self.attribute):
            near = difflib.get_close_matches(self.attribute, vars(module), n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise self.error(f"{_file_of(module)} has no {self.attribute}{hint}")
        return getattr(module, self.attribute)

    def _check_origin(self, top: str) -> None:
        """Refuses a module that was imported from another folder than it would be from now."""
        loaded, found = sys.modules[top], importlib.machinery.PathFinder.find_spec(top)
        one, other = getattr(loaded, "__file__", None), found.origin if found else None
        if one and other and pathlib.Path(one).resolve() != pathlib.Path(other).resolve():
            raise self.error(
                f"the module {top} is in use from {one}, and there is another one, {other}: rename "
                "one of them, or use another process for each"
            )

    def bound(self, *given: Any) -> Callable[..., Any]:
        """The function or class with its keyword arguments, to be called with `given`.

        Raises:
          UserError: as `load`; it is not callable, or not with these arguments.
        """
        part = self.load()
        if not callable(part):
            raise self.error(
                f"{self.attribute} is of type {type(part).__name__}: it must be a function or class"
            )
        try:
            signature = inspect.signature(part)
        except ValueError:  # of a function in C
            signature = None
        if signature is not None:
            try:
                signature.bind(*given, **self.arguments)
            except TypeError as error:
                shown = [str(p) for p in signature.parameters.values() if p.name not in _OF_FLAX]
                raise self.error(f"{error}: it takes ({', '.join(shown)})") from None
        return functools.partial(part, **self.arguments) if self.arguments else part

    def make(self, *given: Any) -> Any:
        """What the function or class gives for these arguments.

        Raises:
          UserError: as `bound`; or an exception of its own, in one line.
        """
        make = self.bound(*given)
        with self.one_line():
            return make(*given)

    @contextlib.contextmanager
    def one_line(self) -> Iterator[None]:
        """Turns what the part's own code raises into a message of one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self.error(where_and_what(error)) from error

    def make_module(self, base: str) -> Any:
        """An instance of the class, which must inherit from `base`, given as ``module:class``.

        Nothing else is called: models of others name their parts too. Both are Flax modules; this
        one belongs to no other yet, whoever makes it.

        Raises:
          UserError: as `make`; or it is no such class.
        """
        part = self.load()
        if not inherits(part, base):
            raise self.error(f"{self.attribute} must be a class that inherits from {base}")
        make = self.bound()
        with self.one_line():
            return make(parent=None)


_OF_FLAX = ("parent", "name")  # fields that every Flax module has


def inherits(part: Any, base: str) -> bool:
    """Whether it is a class that inherits from ``module:class``, of a module above this one."""
    names = [f"{c.__module__}:{c.__qualname__}" for c in getattr(part, "__mro__", ())]
    return isinstance(part, type) and base in names


def parse_own(key: str, text: str) -> OwnPart:
    """Reads ``module:attribute`` or ``module:attribute(key=value)``.

    Args:
      key: the setting, for messages.
      text: its value, or a part of it.

    Raises:
      UserError: it has another form, or values that are no literals.
    """
    form = _FORM.fullmatch(text)
    part = OwnPart(key, text.strip(), "", "", {})
    if form is None:
        raise part.error("write module:attribute, or module:attribute(key=value)")
    module, attribute, call = form.groups()
    arguments = {}
    if call is not None:
        try:
            parsed = ast.parse(f"f{call}", mode="eval").body
        except SyntaxError:
            parsed = None
        if not isinstance(parsed, ast.Call) or isinstance(parsed.func, ast.Call):
            raise part.error(f"{call} cannot be read: write (key=value, other=value)")
        if parsed.args or any(keyword.arg is None for keyword in parsed.keywords):
            raise part.error("give arguments by name: (key=value)")
        for keyword in parsed.keywords:
            try:
                arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
            except (ValueError, TypeError):
                raise part.error(
                    f"{keyword.arg}={ast.unparse(keyword.value)} is no literal: write a value such "
                    "as 6, 0.5, 'text', True or (1, 2)"
                ) from None
    return OwnPart(key, text.strip(), module, attribute, arguments)


def parse_weighted(key: str, text: str) -> tuple[float, OwnPart]:
    """Reads ``0.5*module:attribute(key=value)``: a weight, which is 1 where there is none.

    Raises:
      UserError: as `parse_own`; or the weight is no number of at least 0.
    """
    before, star, rest = text.partition("*")
    if not star or ":" in before:
        return 1.0, parse_own(key, text)
    try:
        weight = float(before)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise UserError(
            f"{key}={text}: {before.strip()!r} is no weight: write 0.5*module:attribute"
        )
    return weight, parse_own(key, rest)


def split_texts(text: str) -> tuple[str, ...]:
    """The texts between commas; those inside of parentheses or quotes do not count."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts if part.strip())


def where_and_what(error: Exception) -> str:
    """An exception in one line: the last file and line that belong to no library, then itself."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return what  # says where it is
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}: {what}"


def _similar(module: str) -> str:
    """What a module was probably to be, among those in the folder that comes first."""
    beside = [path.stem for path in pathlib.Path(sys.path[0]).glob("*.py")]
    near = difflib.get_close_matches(module, beside, n=1, cutoff=0.8)
    return f" (did you mean {near[0]}?)" if near else ""


def _file_of(module: Any) -> str:
    return getattr(module, "__file__", None) or module.__name__
