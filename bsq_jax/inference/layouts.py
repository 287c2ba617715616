"""Orders of the axes of pixels: ``HWC``, ``NCHW``, ``NTHWC`` and all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bsq_jax.core.errors import UserError

_AXES = "NTHWC"
_USUAL = {2: "HW", 3: "HWC", 4: "NHWC", 5: "NTHWC"}
_CHANNELS_FIRST = {3: ("CHW",), 4: ("NCHW", "TCHW"), 5: ("NTCHW", "NCTHW")}


def canonical(array: np.ndarray, layout: str | None, taken: str) -> tuple[np.ndarray, str]:
    """Pixels as ``[batch, time, height, width, channel]``.

    Args:
      array: of 2 to 5 axes.
      layout: which axis is what: N (batch), T (time), H, W and C (channel). Axes before those that
        it names are N, or N and T. None: ``HW``, ``HWC``, ``NHWC`` or ``NTHWC``, by their number.
      taken: what could have been given, for the message.

    Returns:
      The array, and which of N and T it had: none, ``N`` or ``NT``. A clip without N has ``NT``,
      because tokens of clips always have a batch.

    Raises:
      UserError: the layout is none, or does not fit the array.
    """
    if layout is None:
        if array.ndim not in _USUAL:
            raise UserError(f"pixels have shape {array.shape}: give {taken}")
        letters = _USUAL[array.ndim]
    else:
        letters = letters_of(layout)
        before = [axis for axis in "NT" if axis not in letters]
        missing = array.ndim - len(letters)
        if not 0 <= missing <= len(before):
            raise UserError(
                f"pixels have shape {array.shape}, of {array.ndim} axes, which layout={layout!r} "
                f"does not fit"
            )
        letters = "".join(before[:missing]) + letters
    order = [letters.index(axis) for axis in _AXES if axis in letters]
    found = array.transpose(order)
    for place, axis in enumerate(_AXES):
        if axis not in letters:
            found = np.expand_dims(found, place)
    return found, "NT" if "T" in letters else "N" if "N" in letters else ""


def channels_first(shape: Sequence[int]) -> str | None:
    """The layout of an array whose channels probably come first; None if they do not."""
    for layout in _CHANNELS_FIRST.get(len(shape), ()):
        if shape[layout.index("C")] in (1, 3):
            return layout
    return None


def arranged(pixels: np.ndarray, layout: str | None) -> np.ndarray:
    """Pixels ``HWC``, ``NHWC`` or ``NTHWC`` in another order of axes.

    Args:
      pixels: of 3 to 5 axes.
      layout: as in `canonical`; axes that the pixels do not have are left out.

    Raises:
      UserError: it is no layout.
    """
    if layout is None:
        return pixels
    own, letters = _USUAL[pixels.ndim], letters_of(layout)
    named = [axis for axis in letters if axis in own]
    before = [axis for axis in "NT" if axis in own and axis not in named]
    last = [] if "C" in named else ["C"]
    return pixels.transpose([own.index(axis) for axis in (*before, *named, *last)])


def check_layout(layout: str | None) -> None:
    """Refuses what is no layout, before any work.

    Raises:
      UserError: it is none.
    """
    if layout is not None:
        letters_of(layout)


def letters_of(layout: str) -> str:
    """The axes that a layout names, in capitals; B is another name of N.

    Raises:
      UserError: it is no layout.
    """
    letters = layout.upper().replace("B", "N") if isinstance(layout, str) else ""
    fits = len(set(letters)) == len(letters) and set("HW") <= set(letters) <= set(_AXES)
    if not fits:
        raise UserError(
            f"layout={layout!r}: name each axis once, N (batch), T (time), H, W and C (channel), "
            "such as HWC, CHW, NCHW or NTHWC"
        )
    return letters
