"""Fail-fast across processes: when one process of a run fails, all end with its message.

The process that fails writes its message to the key-value store of JAX's coordination service and
exits; a thread in each other process reads it there. Nothing waits for the barrier at the end of a
normal run, which the failed process will never reach. A process that is killed writes nothing: then
the collective that it takes part in fails, or process 0 misses its heartbeat. JAX has a heartbeat
of its own, but ends the other processes by an abort, without a message and with no status that
tells a launcher to start the run again; so ours is the shorter one. When process 0 is gone, which
runs the service, that abort is what happens.
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
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import jax

from bsq_jax.core.errors import (
    INTERRUPTED,
    MISTAKE,
    RUN_AGAIN,
    Interrupted,
    UserError,
    out_of_memory,
)
from bsq_jax.core.jax_private import coordination_client

_KEY = "bsq_jax/failure"
_ALIVE = "bsq_jax/alive"
_POLL = 0.5  # seconds
_HEARTBEAT = 2.0  # seconds from one to the next
# Seconds without a heartbeat after which a process is lost; less than half of
# `bsq_jax.core.distributed.HEARTBEAT`, after which JAX would abort the others.
_LOST = 25.0
_PATIENCE = 3.0  # seconds that a process waits for another one to announce its failure first

_over = threading.Event()  # a normal end, or this process has begun to fail
_calls = 0  # of `shared`, with the one under way; the same on all processes
_failing = threading.Lock()  # held by the thread that ends the process


class Failure(NamedTuple):
    """What a failed process tells the others: its number, its exit status and its message."""

    process: int
    status: int
    message: str


_AGAIN = "run the same command again"
_OF_TRAINING = (
    "lower train.batch_size, raise train.accumulate, set model.remat=dots or full, or spread the "
    "parameters with mesh.fsdp; `bsq-jax plan` shows what is needed"
)


def _again() -> str:
    return _AGAIN


_goes_on: Callable[[], str] = _again


@contextlib.contextmanager
def shared(
    interrupted: str = _AGAIN, goes_on: Callable[[], str] = _again, memory: str = _OF_TRAINING
) -> Iterator[None]:
    """Inside, a failure of one process ends all processes of the run.

    In a run of one process errors pass through, but for what has a clearer line. With several, all
    enter it alike, as often as they like; a process counts as lost only once it has entered.

    Args:
      interrupted: what Ctrl-C leaves.
      goes_on: says what the same command would do, for the message of a process that was lost.
      memory: what to do where a device or the host has too little memory.

    Raises:
      UserError: a device or the host has too little memory.
      Interrupted: Ctrl-C.
    """
    if jax.process_count() == 1:
        try:
            yield
        except Interrupted:  # says more
            raise
        except KeyboardInterrupt as error:
            raise Interrupted(interrupted) from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            told = out_of_memory(error, memory)
            if told is None:
                raise
            raise told from error
        return
    global _goes_on, _calls
    _goes_on, _calls = goes_on, _calls + 1
    _over.clear()
    atexit.register(_over.set)  # before JAX's own handler, which waits for the others
    threading.Thread(target=_listen, args=(_calls,), name="failures", daemon=True).start()
    try:
        yield
    except UserError as error:
        end(MISTAKE, str(error))
    except KeyboardInterrupt:
        end(INTERRUPTED, f"interrupted: {interrupted}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        told = out_of_memory(error, memory)
        if told is not None:
            end(MISTAKE, str(told))
        reason = " ".join(str(error).split())[:200]
        end(
            RUN_AGAIN,
            f"another process was lost, or a device failed ({reason}): {_goes_on()}",
            blame_others=True,
        )
    except Exception as error:
        traceback.print_exc()
        end(1, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    finally:
        _over.set()


def announce(failure: Failure) -> None:
    """Tells the other processes, unless one has failed before, or the service is gone."""
    with contextlib.suppress(Exception):
        coordination_client().key_value_set(_KEY, json.dumps(failure))


def announced(timeout: float = 0.0) -> Failure | None:
    """The failure that a process announced, waiting for it for so many seconds."""
    give_up = time.monotonic() + timeout
    while True:
        with contextlib.suppress(Exception):
            return Failure(*json.loads(coordination_client().key_value_try_get(_KEY)))
        if time.monotonic() >= give_up:
            return None
        time.sleep(0.05)


def _listen(call: int) -> None:
    """Waits for the failure of another process; sends heartbeats, which process 0 checks.

    In a thread of its own, so that a long step or compilation does not hold up the heartbeat.

    Args:
      call: number of the call of `shared`. The heartbeats of an earlier one stay in the store.
    """
    index, beats, next_beat = jax.process_index(), 0, 0.0
    seen: dict[str, tuple[str, float]] = {}  # of each process the last heartbeat and its time
    while not _over.wait(_POLL) and call == _calls:
        now = time.monotonic()
        if now >= next_beat:
            beats, next_beat = beats + 1, now + _HEARTBEAT
            with contextlib.suppress(Exception):
                coordination_client().key_value_set(
                    f"{_ALIVE}/{call}/{index}", str(beats), allow_overwrite=True
                )
            if index == 0:
                _check_heartbeats(call, seen, now)
        failure = announced()
        if failure is not None and _failing.acquire(blocking=False):
            _follow(failure)


def _check_heartbeats(call: int, seen: dict[str, tuple[str, float]], now: float) -> None:
    """Announces the failure of a process whose heartbeat has stopped within this call."""
    with contextlib.suppress(Exception):
        for name, beat in coordination_client().key_value_dir_get(f"{_ALIVE}/{call}"):
            if seen.get(name, ("", 0.0))[0] != beat:
                seen[name] = beat, now
    for name, (_, when) in seen.items():
        if now - when > _LOST:
            message = (
                f"not heard of for {_LOST:.0f} s, it was killed or its machine is gone: "
                f"{_goes_on()}"
            )
            announce(Failure(int(name.rpartition("/")[2]), RUN_AGAIN, message))


def _follow(failure: Failure) -> NoReturn:
    """Ends this process because another one has failed."""
    if jax.process_index() == 0:
        _say(failure.status, f"process {failure.process}: {failure.message}")
        time.sleep(2 * _POLL)  # the others read it from this process, which serves the messages
    _leave(failure.status)


def end(status: int, message: str, *, blame_others: bool = False) -> NoReturn:
    """Ends this process, and with it the others.

    Args:
      status: exit status of all.
      message: one line.
      blame_others: the failure that another process announces is the cause of this one.
    """
    if not _failing.acquire(blocking=False):
        threading.Event().wait()  # the listening thread is ending the process
    mine, index = Failure(jax.process_index(), status, message), jax.process_index()
    # Often all processes meet the same mistake; then process 0 alone prints it.
    first = announced(_PATIENCE if blame_others or index else 0.0)
    if first is not None and blame_others:
        _follow(first)
    announce(mine)
    if first is None or first.message != message or index == 0:
        _say(status, message)
    if index == 0:
        time.sleep(2 * _POLL)  # the others read it from this process, which serves the messages
    _leave(status)


def _say(status: int, message: str) -> None:
    kind = "" if status == INTERRUPTED else "error: "
    print(f"{kind}{message}", file=sys.stderr, flush=True)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
