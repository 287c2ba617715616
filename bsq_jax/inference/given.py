"""What users hand to the API, as arrays: tensors of any library, and lists of inputs."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.inference.layouts import arranged

# Floats that numpy has; tensors of others, such as bfloat16, are widened first.
_OWN_FLOATS = ("float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Given:
    """Inputs as arrays, with what is needed to give results in their form.

    Attributes:
      arrays: ``[batch, time, ...]`` of each input.
      axes: which of these two axes each input had: none, ``N`` or ``NT``.
      listed: whether a list was given, so that a list is returned.
    """

    arrays: tuple[np.ndarray, ...]
    axes: tuple[str, ...]
    listed: bool

    @property
    def clips(self) -> bool:
        """Whether there are clips among the inputs."""
        return "NT" in self.axes

    def joined(self) -> np.ndarray:
        """All inputs as one array ``[batch, time, ...]``.

        Raises:
          UserError: there is none, or clips of several lengths.
        """
        if not self.arrays:
            raise UserError("an empty list: give at least one")
        if len({array.shape[2:] for array in self.arrays}) > 1:
            raise UserError("frames of several sizes: give those of one size at a time")
        if len({array.shape[1:] for array in self.arrays}) > 1:
            raise UserError("clips of several lengths: give those of one length at a time")
        arrays = self.arrays
        if len({array.dtype for array in arrays}) > 1:
            arrays = tuple(
                array.astype(np.float32) / np.float32(127.5) - np.float32(1)
                if array.dtype == np.uint8
                else array
                for array in arrays
            )
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]

    def like(self, result: np.ndarray, layout: str | None = None) -> Any:
        """What was computed from `joined`, in the form of the inputs; as `formed`."""
        rows = np.cumsum([len(array) for array in self.arrays])[:-1]
        return self.formed(np.split(result, rows), layout)

    def formed(self, results: Sequence[np.ndarray], layout: str | None = None) -> Any:
        """Results in the form of the inputs.

        Args:
          results: ``[batch, time, ...]`` of each input.
          layout: of results that are pixels, see `arranged`.

        Returns:
          An array, or a list where one was given.

        Raises:
          UserError: the layout is none.
        """
        formed = []
        for result, axes in zip(results, self.axes, strict=True):
            own = result if axes == "NT" else result[:, 0] if axes else result[0, 0]
            formed.append(arranged(own, layout))
        return formed if self.listed else formed[0]


def gather(
    inputs: Any, convert: Callable[[Any], tuple[np.ndarray, str]], *, listed: bool | None = None
) -> Given:
    """An input, or each of a list.

    Args:
      inputs: what a user gave.
      convert: of an input gives ``[batch, time, ...]`` and the axes that it had, see `Given`.
      listed: whether it is a list of inputs; None: it is a list, and not of mere numbers.

    Raises:
      UserError: those of `convert`; of a list they say which input it is.
    """
    if not (is_list(inputs) if listed is None else listed):
        array, axes = convert(inputs)
        return Given((array,), (axes,), listed=False)
    found = []
    for place, item in enumerate(inputs):
        try:
            found.append(convert(item))
        except UserError as error:
            raise UserError(f"number {place} (from 0) of the list: {error}") from None
    return Given(tuple(array for array, _ in found), tuple(axes for _, axes in found), listed=True)


def is_list(inputs: Any) -> bool:
    """Whether it is a list or tuple of inputs, rather than numbers in nested lists."""
    inner = inputs
    while isinstance(inner, list | tuple) and inner:
        inner = inner[0]
    return isinstance(inputs, list | tuple) and not isinstance(inner, numbers.Number | np.generic)


def as_array(given: Any, what: str, taken: str = "an array") -> np.ndarray:
    """Numbers as a numpy array, on the host.

    Tensors of PyTorch are recognized by their methods: they may need gradients, be on any device,
    and be of types that numpy lacks.

    Args:
      given: an array, a tensor, or numbers in nested lists.
      what: what to call it in messages, in the plural.
      taken: what could have been given, for messages.

    Raises:
      UserError: it is none of them.
    """
    kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__qualname__}"
    kind = kind.removeprefix("builtins.")
    try:
        if callable(getattr(given, "detach", None)) and callable(getattr(given, "cpu", None)):
            tensor = given.detach().cpu()
            dtype = str(tensor.dtype).rpartition(".")[2]
            if "float" in dtype and dtype not in _OWN_FLOATS:
                tensor = tensor.float()
            array = np.asarray(tensor.numpy())
        else:
            array = np.asarray(given)
    except Exception as error:  # libraries raise nearly anything, such as of tensors without data
        reason = " ".join(str(error).split())
        raise UserError(f"{what} of type {kind} cannot be read as an array: {reason}") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        if isinstance(given, Iterator):
            taken = "list(...) of it"
        raise UserError(f"{what} are of type {kind}, not an array of numbers: give {taken}")
    return array
