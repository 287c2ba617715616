"""Pictures as PNG files, and grids of pictures with labeled rows."""

import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic

_TARGET_WIDTH = 1000  # pixels: what a page or a screen shows at full size
_LARGEST_SCALE = 16
_INK = (40, 40, 40)
_CAPTION = 18  # pixels: height of the captions above a row


def _check_rows(rows: Sequence[np.ndarray], labels: Sequence[str] | None) -> list[np.ndarray]:
    """The rows as arrays; a `UserError` if they are no pictures of one shape."""
    arrays = [np.asarray(row) for row in rows]
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
            raise UserError(
                f"a row of pictures must be uint8 [N, height, width, 3], not {array.dtype} "
                f"{list(array.shape)}"
            )
        if array.shape != arrays[0].shape:
            raise UserError(
                f"all rows must have one shape, not {list(arrays[0].shape)} and {list(array.shape)}"
            )
    if not arrays:
        raise UserError("a grid needs at least one row of pictures")
    if labels is not None and len(labels) != len(arrays):
        raise UserError(f"{len(arrays)} rows need as many labels, not {len(labels)}")
    return arrays


def _label_strip(labels: Sequence[str], tops: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """A white strip with a label at the middle of each row.

    Args:
      labels: one a row of pictures.
      tops: the first pixel of each of these rows.
      shape: height of the whole grid and height of one row, in pixels.

    Returns:
      uint8 [height, width as the longest label needs, 3].
    """
    height, row = shape
    font = ImageFont.load_default(size=min(18, max(10, row)) if row < 252 else min(48, row // 14))
    edges = [font.getbbox(label) for label in labels]
    width = int(max(right for _, _, right, _ in edges)) + 16
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    for label, top in zip(labels, tops, strict=True):
        draw.text((8, top + row / 2), label, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def _caption_strip(
    captions: Sequence[str], lefts: Sequence[int], shape: tuple[int, int]
) -> np.ndarray:
    """A white strip with a caption at the left edge of each picture below it.

    Args:
      captions: one a picture.
      lefts: the first pixel of each picture.
      shape: height and width of the strip, in pixels.
    """
    strip = Image.new("RGB", shape[::-1], "white")
    draw = ImageDraw.Draw(strip)
    for caption, left in zip(captions, lefts, strict=False):
        font = ImageFont.load_default(size=shape[0] - 4)
        draw.text((left, shape[0] / 2), caption, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def grid(
    rows: Sequence[np.ndarray],
    *,
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
    columns: int = 8,
) -> np.ndarray:
    """Lays out rows of pictures one above the other, such as originals over reconstructions.

    With more pictures than ``columns`` the rows continue in another block below. Small pictures
    are enlarged by a whole number without smoothing, so that a pixel stays a pixel.

    Args:
      rows: each uint8 [N, height, width, channel 3]; all of one shape.
      labels: a short name for each row, written at its left.
      captions: a short name for each of the N pictures, written above the first row.
      scale: factor of enlargement; by default such that the grid is about 1000 pixels wide.
      columns: the most pictures in a row.

    Returns:
      uint8 [height, width, channel 3] on a white background.

    Raises:
      UserError: the rows are no pictures or differ in shape, or labels and rows, or captions and
        pictures, differ in number.
    """
    arrays = _check_rows(rows, labels)
    count, height, width, _ = arrays[0].shape
    if captions is not None and len(captions) != count:
        raise UserError(f"{count} pictures need as many captions, not {len(captions)}")
    columns = min(max(1, columns), count)
    if scale is None:
        scale = min(_LARGEST_SCALE, max(1, round(_TARGET_WIDTH / (columns * width))))
    if scale < 1:
        raise UserError(f"scale={scale}: give a whole number from 1 up")
    height, width = height * scale, width * scale
    gap = max(2, min(height, width) // 32)
    blocks = -(-count // columns)
    head = 0 if captions is None else _CAPTION

    # Rows of a block stand close together, and blocks further apart.
    each = head + len(arrays) * (height + gap) + 3 * gap
    tops = [
        gap + head + block * each + index * (height + gap)
        for block in range(blocks)
        for index in range(len(arrays))
    ]
    sheet = np.full((tops[-1] + height + gap, gap + columns * (width + gap), 3), 255, np.uint8)
    lefts = [gap + column * (width + gap) for column in range(columns)]
    for number, top in enumerate(tops):
        block, index = divmod(number, len(arrays))
        if captions is not None and index == 0:
            here = captions[block * columns : (block + 1) * columns]
            sheet[top - head : top] = _caption_strip(here, lefts, (head, sheet.shape[1]))
        for column, picture in enumerate(arrays[index][block * columns : (block + 1) * columns]):
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet[top : top + height, lefts[column] : lefts[column] + width] = large
    if labels is None:
        return sheet
    return np.concatenate(
        [_label_strip(list(labels) * blocks, tops, (sheet.shape[0], height)), sheet], axis=1
    )


def save_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes a picture as a PNG file, atomically.

    Args:
      path: the file; missing folders are made.
      picture: uint8 [height, width, channel 3].

    Raises:
      UserError: it is no such picture.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, encode_png(picture))


def encode_png(picture: np.ndarray, *, comment: str = "") -> bytes:
    """A picture, uint8 [height, width, channel 3], as the bytes of a PNG file.

    The comment, of ASCII, is kept as its text ``Comment``; empty: there is none.

    Raises:
      UserError: it is no such picture.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise UserError(
            f"a picture must be uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}"
        )
    buffer = io.BytesIO()
    text = PngInfo()
    if comment:
        text.add_text("Comment", comment)
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
