"""HEIC pictures, as phones write them: Pillow opens them where pillow-heif is installed."""

try:
    from pillow_heif import register_heif_opener
except ImportError:
    READ = False
else:
    register_heif_opener()
    READ = True

EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
HINT = "HEIC is read after `pip install pillow-heif`"

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_heic(file: bytes) -> bool:
    """Whether the first bytes are those of a HEIC picture, which begins as an MP4 does."""
    return file[4:8] == b"ftyp" and file[8:12] in _BRANDS
