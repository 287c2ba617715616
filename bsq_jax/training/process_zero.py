"""What one process finds out for all: the processes of a run then act alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bsq_jax.core.errors import UserError

_MESSAGE_BYTES = 8192


def from_process_zero(function: Callable[[], Any]) -> Any:
    """Result of `function` (JSON) on process 0, or its `UserError`, on every process.

    Machines may see a shared file system at different moments, so only one reads it.

    Args:
      function: called on process 0 alone; its result takes at most 8 kB as JSON.

    Raises:
      UserError: `function` raised it; the message is cut after 1000 characters.
    """
    if jax.process_count() == 1:
        return function()
    buffer = np.zeros(_MESSAGE_BYTES, np.uint8)
    if jax.process_index() == 0:
        try:
            answer = {"value": function()}
        except UserError as error:
            answer = {"error": str(error)[:1000]}
        text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
        buffer[: text.size] = text
    received = np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)
    answer = json.loads(received.tobytes().rstrip(b"\0"))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]
