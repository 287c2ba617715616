"""The fields of requests, and the methods of the workbench that they are for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from bsq_jax.cli.demo_page.workbench import Answer, Workbench
from bsq_jax.core.errors import UserError

_METHODS = ("sample", "encode", "compare", "token", "flip")
_MOST_WHOLE = 2**31  # numbers in requests are smaller
PATHS = frozenset(f"/{name}" for name in _METHODS)
"""Of the requests whose body is JSON."""


def answer(workbench: Workbench, path: str, body: bytes) -> Answer:
    """Does what a request asks for.

    Args:
      workbench: computes.
      path: of `PATHS`.
      body: a JSON object with the fields that the method of this name takes.

    Raises:
      UserError: the body is no such object, or the workbench refuses.
    """
    method = getattr(workbench, path.removeprefix("/"))
    return method(**_fields(method, body))


def _fields(method: Callable[..., Answer], body: bytes) -> Mapping[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the request is not JSON") from None
    if not isinstance(given, dict):
        raise UserError("the request is no JSON object")
    kinds = get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    for name in names:
        if not _is(given.get(name), kinds[name]):
            raise UserError(f"the request has no right {name!r}")
    return {name: given[name] for name in names}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: text, a whole number, or a list of these."""
    if kind is int:
        return type(value) is int and abs(value) < _MOST_WHOLE
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, list) and all(_is(item, int) for item in value)
