"""Repeated reads after transient errors, as happen on network storage."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")

PAUSES = (0.1, 1.0)  # seconds before the second and the third try
# Permanent errors, which are not retried.
_FINAL = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
)


def with_retries(read: Callable[[], _Found]) -> _Found:
    """The result of ``read``, which is called up to three times while it raises ``OSError``.

    A missing file or permission is raised at once; so is ``OSError`` without a number, which comes
    from libraries and not from the system.

    Raises:
      OSError: the last of them.
    """
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in _FINAL:
                raise
        time.sleep(pause)
    return read()
