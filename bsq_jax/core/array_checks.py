"""Checks of arrays where they enter public functions; while tracing, so that they cost nothing."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

_KINDS: dict[str, tuple[Any, ...]] = {
    "floats": (jnp.floating,),
    "integers": (jnp.integer, jnp.bool_),
    "numbers": (jnp.number,),
}


def check_array(
    name: str,
    array: Any,
    *axes: str | int,
    kind: Literal["floats", "integers", "numbers"] = "floats",
    leading: bool = False,
) -> None:
    """Refuses an array of other axes or another kind of type.

    Args:
      name: of the argument, for the message.
      array: has ``shape`` and ``dtype``.
      *axes: its axes: a number is the size, a word allows any size.
      kind: of the type; booleans count as integers.
      leading: any number of axes may come before.

    Raises:
      ValueError: names the argument, what it is and what is needed.
    """
    shape = array.shape
    compared = shape[len(shape) - len(axes) :] if leading and len(shape) > len(axes) else shape
    fits = len(compared) == len(axes) and all(
        isinstance(wanted, str) or size == wanted
        for size, wanted in zip(compared, axes, strict=True)
    )
    if not fits or not any(jnp.issubdtype(array.dtype, known) for known in _KINDS[kind]):
        wanted = ", ".join(map(str, (*(["..."] if leading else []), *axes)))
        raise ValueError(
            f"{name} is {array.dtype} {list(shape)}: {kind} of shape [{wanted}] are needed"
        )
