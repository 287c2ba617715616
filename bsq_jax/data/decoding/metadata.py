"""Metadata of an encoded picture: its orientation, and its removal where it is damaged.

Cameras and editors write EXIF that breaks its standard in many ways, and Pillow then refuses to
rewrite it, or stops reading at the first bad field. Only the orientation matters here, so it is
looked up alone, and the rest of the EXIF is never decoded.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

TIFF_ORIENTATION = 0x0112
# Integer types of TIFF fields by their number: BYTE, SHORT, LONG, and the signed ones.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")
_SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of PNG that change pixels, besides the critical ones, whose names begin with a capital.
_PNG_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")

# The segment that says that colours are YCbCr, without a resolution or a thumbnail.
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """Orientation of an opened picture, 1 to 8 as EXIF counts them; 1 where it says none.

    EXIF is asked first, then XMP. What a PNG says behind its pixels is known once it is loaded; a
    TIFF must be asked before it is loaded, because Pillow then turns it and forgets.
    """
    info = image.info
    found = None
    if image.format == "TIFF":
        found = _valid(tiff_tags(image).get(TIFF_ORIENTATION))
    elif isinstance(info.get("exif"), bytes):
        found = _of_exif(info["exif"])
    elif isinstance(info.get("Raw profile type exif"), str):  # an older way to put EXIF into PNG
        lines = info["Raw profile type exif"].split("\n")[3:]
        try:
            found = _of_exif(bytes.fromhex("".join(lines)))
        except ValueError:
            found = None
    return found or _of_xmp(info.get("XML:com.adobe.xmp") or info.get("xmp")) or 1


def load_tiff(image: Image.Image) -> None:
    """Loads the pixels of an opened TIFF, turned by `orientation`.

    Pillow turns a TIFF itself when it loads it, and reads its EXIF and GPS directories on the way,
    which may be damaged: here it is told the orientation and forgets the directories.
    """
    with contextlib.suppress(Exception):
        turn, exif = orientation(image), image.getexif()
        for tag in _SUB_DIRECTORIES:
            if tag in exif:
                del exif[tag]
        exif[TIFF_ORIENTATION] = turn
    image.load()


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture before it is turned."""
    if image.format == "TIFF":  # some releases of Pillow give it as it will be turned
        tags = tiff_tags(image)
        return tags[256], tags[257]
    return image.size


def tiff_tags(image: Image.Image) -> Any:
    """The fields of an opened TIFF by their numbers."""
    return image.tag_v2  # type: ignore[attr-defined]  # of Pillow's class for this format


def without_metadata(file: bytes) -> bytes | None:
    """The same JPEG or PNG with nothing but pixels and orientation; None for other formats.

    JPEG keeps what its JFIF and Adobe segments say of how colours are stored, and of the first EXIF
    segment the orientation. PNG keeps transparency, animation and EXIF likewise.
    """
    if file.startswith(b"\xff\xd8"):
        return _plain_jpeg(file)
    if file.startswith(_PNG):
        return _plain_png(file)
    return None


def _valid(value: object) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _of_exif(blob: bytes) -> int | None:
    """The orientation in the first directory of an EXIF blob, whatever the other fields are."""
    blob = re.sub(b"^(Exif\0\0){1,2}", b"", blob)
    order = {b"II": "<", b"MM": ">"}.get(blob[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", blob, 4)
        (count,) = struct.unpack_from(order + "H", blob, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", blob, entry)
            if tag == TIFF_ORIENTATION and kind in _INTEGERS:
                return _valid(struct.unpack_from(order + _INTEGERS[kind], blob, entry + 8)[0])
    except struct.error:  # cut short
        pass
    return None


def _of_xmp(packet: object) -> int | None:
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "replace")
    match = _XMP.search(packet) if isinstance(packet, bytes) else None
    return int(match[1]) if match else None


def _small_exif(value: int) -> bytes:
    """An EXIF blob that holds an orientation and nothing else."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, TIFF_ORIENTATION, 3, 1, value, 0, 0)


def _plain_jpeg(file: bytes) -> bytes | None:
    parts, turn, place = [file[:2]], None, 2
    while True:
        if file[place : place + 1] != b"\xff":
            return None
        while file[place + 1 : place + 2] == b"\xff":  # fill bytes may precede a marker
            place += 1
        marker = file[place + 1 : place + 2]
        if not marker or len(file) < place + 4:
            return None
        end = place + 2 + struct.unpack_from(">H", file, place + 2)[0]
        segment, data = file[place:end], file[place + 4 : end]
        if marker == b"\xda":  # the pixels begin
            break
        if marker == b"\xe1" and turn is None and data.startswith(b"Exif\0\0"):
            turn = _of_exif(data)
        jfif = marker == b"\xe0" and data.startswith(b"JFIF\0")
        adobe = marker == b"\xee" and data.startswith(b"Adobe") and len(data) >= 12
        if jfif:
            parts.append(_JFIF)
        elif adobe or not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"):
            parts.append(segment)
        place = end
    if turn:
        exif = b"Exif\0\0" + _small_exif(turn)
        parts.insert(1, b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)
    return b"".join([*parts, file[place:]])


def follows_pixels(file: bytes) -> bool:
    """Whether a PNG has chunks behind its pixels that may say how it is turned."""
    names = [name for name, _, _ in _png_chunks(file)]
    behind = names[names.index(b"IDAT") :] if b"IDAT" in names else []
    return not {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}.isdisjoint(behind)


def _plain_png(file: bytes) -> bytes:
    parts = [_PNG]
    for name, data, chunk in _png_chunks(file):
        turn = _of_exif(data) if name == b"eXIf" else None
        if turn:
            parts.append(_png_chunk(name, _small_exif(turn)))
        elif name[:1].isupper() or name in _PNG_PIXELS:
            parts.append(chunk)
    return b"".join(parts)


def _png_chunks(file: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(name, data, whole chunk) of a PNG; the last may be cut short."""
    place = len(_PNG)
    while place + 8 <= len(file):
        size, name = struct.unpack_from(">I4s", file, place)
        end = place + 12 + size
        yield name, file[place + 8 : end - 4], file[place:end]
        place = end


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
