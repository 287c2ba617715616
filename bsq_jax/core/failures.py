"""How a run over several processes ends when one of them fails: all end, with its message.

Who fails tells the others through JAX's coordination service and is gone; a thread of each listens.
Nobody waits for the barrier at the end of a normal run, which the failed process will never reach.
A process that is killed cannot tell: then the collective that it takes part in fails, or process 0
misses its sign of life. Where process 0 is gone, which runs the service, JAX itself ends the others
at once, with a message of its own and the status of an abort.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src import distributed  # the key-value store has no public name

from bsq_jax.core.errors import INTERRUPTED, MISTAKE, RUN_AGAIN, UserError

_KEY = "bsq_jax/failure"
_ALIVE = "bsq_jax/alive"
_POLL = 0.5  # seconds
_SIGN = 2.0  # seconds between two signs of life
# Seconds without one after which a process is lost; less than half of
# `bsq_jax.core.distributed.HEARTBEAT`, after which JAX would abort the others.
_LOST = 25.0
_PATIENCE = 3.0  # seconds that a process gives another one to tell first

_over = threading.Event()  # a normal end, or this process has begun to fail
_failing = threading.Lock()  # held by the thread that ends the process


class Failure(NamedTuple):
    """What a process told the others: its number, its exit status and its message."""

    process: int
    status: int
    message: str


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """What happens inside happens to all processes: a failure of one ends all of them.

    In a run of one process errors pass through, but for what has a clearer line.

    Raises:
      UserError: a device has too little memory.
    """
    if jax.process_count() == 1:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise _told(error) from error
        return
    _over.clear()
    atexit.register(_over.set)  # before JAX's own handler, which waits for the others
    threading.Thread(target=_listen, name="failures", daemon=True).start()
    try:
        yield
    except UserError as error:
        _end(MISTAKE, str(error))
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted: the same command goes on from the last checkpoint")
    except jax.errors.JaxRuntimeError as error:
        told = _told(error)
        if isinstance(told, UserError):
            _end(MISTAKE, str(told))
        reason = " ".join(str(error).split())[:200]
        _end(
            RUN_AGAIN,
            f"another process was lost, or a device failed ({reason}): the same command goes on "
            "from the last checkpoint",
            blame_others=True,
        )
    except Exception as error:
        traceback.print_exc()
        _end(1, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    finally:
        _over.set()


def _told(error: jax.errors.JaxRuntimeError) -> Exception:
    """The error as a user should see it: itself, if there is no clearer line."""
    text = " ".join(str(error).split())
    if not text.startswith("RESOURCE_EXHAUSTED"):
        return error
    return UserError(
        "a device has too little memory: lower train.batch_size, raise train.accumulate, set "
        "model.remat=dots or full, or spread the parameters with mesh.fsdp "
        f"(python -m bsq_jax plan shows what is needed); {text[:200]}"
    )


def announce(failure: Failure) -> None:
    """Tells the other processes, unless one has told already, or nobody can be reached."""
    with contextlib.suppress(Exception):
        _client().key_value_set(_KEY, json.dumps(failure))


def announced(timeout: float = 0.0) -> Failure | None:
    """What a process told, waiting for it for so many seconds."""
    give_up = time.monotonic() + timeout
    while True:
        with contextlib.suppress(Exception):
            return Failure(*json.loads(_client().key_value_try_get(_KEY)))
        if time.monotonic() >= give_up:
            return None
        time.sleep(0.05)


def _client() -> Any:
    return distributed.global_state.client


def _listen() -> None:
    """Waits for the failure of another process; gives signs of life, and process 0 looks for them.

    The threads of a process run side by side, so that a long step or compilation is no silence.
    """
    index, signs, next_sign = jax.process_index(), 0, 0.0
    heard: dict[str, tuple[str, float]] = {}  # of each process the last sign, and when it was new
    while not _over.wait(_POLL):
        now = time.monotonic()
        if now >= next_sign:
            signs, next_sign = signs + 1, now + _SIGN
            with contextlib.suppress(Exception):
                _client().key_value_set(f"{_ALIVE}/{index}", str(signs), allow_overwrite=True)
            if index == 0:
                _look_for_signs(heard, now)
        failure = announced()
        if failure is not None and _failing.acquire(blocking=False):
            _follow(failure)


def _look_for_signs(heard: dict[str, tuple[str, float]], now: float) -> None:
    """Announces a process that was heard of once and is silent since."""
    with contextlib.suppress(Exception):
        for name, sign in _client().key_value_dir_get(_ALIVE):
            if heard.get(name, ("", 0.0))[0] != sign:
                heard[name] = sign, now
    for name, (_, when) in heard.items():
        if now - when > _LOST:
            message = (
                f"not heard of for {_LOST:.0f} s, it was killed or its machine is gone: the same "
                "command goes on from the last checkpoint"
            )
            announce(Failure(int(name.rpartition("/")[2]), RUN_AGAIN, message))


def _follow(failure: Failure) -> NoReturn:
    """Ends this process because another one has failed."""
    if jax.process_index() == 0:
        _say(f"process {failure.process}: {failure.message}")
        time.sleep(2 * _POLL)  # the others read it from this process, which serves the messages
    _leave(failure.status)


def _end(status: int, message: str, *, blame_others: bool = False) -> NoReturn:
    """Ends this process, and with it the others.

    Args:
      status: exit status of all.
      message: one line.
      blame_others: what another process tells counts more than this.
    """
    if not _failing.acquire(blocking=False):
        threading.Event().wait()  # the listening thread is ending the process
    mine, index = Failure(jax.process_index(), status, message), jax.process_index()
    # Often all meet the same mistake; then process 0 alone speaks.
    first = announced(_PATIENCE if blame_others or index else 0.0)
    if first is not None and blame_others:
        _follow(first)
    announce(mine)
    if first is None or first.message != message or index == 0:
        _say(message)
    if index == 0:
        time.sleep(2 * _POLL)  # the others read it from this process, which serves the messages
    _leave(status)


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
