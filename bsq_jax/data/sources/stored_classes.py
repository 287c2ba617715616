"""Classes of records that are stored beside them, as numbers or as names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bsq_jax.data.records import NO_LABEL

# What stands for a class: its number or its name.
Value = int | str

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MOST_NUMBERS = 65_536  # classes whose numbers are those that are stored


def class_value(stored: object) -> Value | None:
    """What a stored label says of the class: a number, also one written as text, or a name.

    None where it says nothing: a number below 0, an empty text, or neither number nor text.
    """
    if isinstance(stored, str):
        text = stored.strip()
        if not _NUMBER.fullmatch(text):
            return text or None
        stored = int(text)
    if isinstance(stored, int) and stored >= 0:
        return int(stored)
    return None


def number_classes(
    values: Iterable[Value], names: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[Value, int]]:
    """Names of classes, and the number of each value that is stored.

    Where all values are numbers below 65,536, these are the numbers of the classes, from 0 to the
    greatest. Otherwise classes are the values in order: of numbers by size, then of names.

    Args:
      values: those of the train split.
      names: of the classes by number, if they are stored too.
    """
    found = set(values)
    numbers = sorted(value for value in found if isinstance(value, int))
    if len(numbers) == len(found) and (not numbers or numbers[-1] < max(_MOST_NUMBERS, len(names))):
        if not found:
            return (), {}
        count = max(numbers[-1] + 1, len(names))
        every = [*names, *(str(number) for number in range(len(names), count))]
        return tuple(every), {number: number for number in range(count)}
    ordered: list[Value] = [*numbers, *sorted(value for value in found if isinstance(value, str))]
    return tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}


def labels_of(
    codes: np.ndarray, values: Sequence[Value], numbers: Mapping[Value, int]
) -> np.ndarray:
    """The number of each record's class.

    Args:
      codes: for each record the place of its value among ``values``, or -1: int ``[record]``.
      values: what is stored.
      numbers: of the classes, as `number_classes` gives them.

    Returns:
      int32 ``[record]``; `NO_LABEL` where there is no class or it is none of the train split.
    """
    table = np.array([*(numbers.get(value, NO_LABEL) for value in values), NO_LABEL], np.int32)
    labels: np.ndarray = table[np.asarray(codes, np.int64)]  # -1 is the last
    return labels
