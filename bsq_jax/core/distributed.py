"""The start of a run over several processes: one a host, each running the same command."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax

from bsq_jax.core.errors import UNAVAILABLE, UserError
from bsq_jax.core.jax_private import machines_of_tpu_slice

TIMEOUT = 300.0  # seconds: hosts of a large job do not start at the same moment
# Seconds without a sign of life after which JAX aborts the others. It gives two in that time, so a
# process that is killed may be missed after half of it.
HEARTBEAT = 100
# The flags in the environment, as JAX names them, for launchers that start all processes alike.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = TIMEOUT,
) -> None:
    """Makes this process part of the run; to be called before JAX is asked for devices.

    Without arguments the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    take their place, as in a Kubernetes JobSet. Without these JAX finds the other processes by
    itself, where the environment says that there are any (a TPU pod, Slurm, Open MPI); otherwise
    nothing happens and the run has one process.

    Args:
      coordinator: ``HOST:PORT`` of process 0, as every process can reach it.
      processes: how many there are.
      process: the number of this one, from 0.
      timeout: seconds to wait for the others. After it the process ends with status 69 and one line
        on standard error; an exception could not pass through JAX, which would abort by itself.

    Raises:
      UserError: only some of the three are given, or they cannot be.
    """
    names = ("--coordinator", "--processes", "--process")
    if coordinator is None and processes is None and process is None:
        coordinator, processes, process = _from_variables(os.environ)
        names = _VARIABLES
    if coordinator is None and processes is None and process is None:
        if several_processes(os.environ) or _machines_of_this_slice() > 1:
            with _deadline(timeout, "the processes that the environment names"):
                _start(timeout)
        return
    if coordinator is None or processes is None or process is None:
        raise UserError(f"{names[0]}, {names[1]} and {names[2]} go together: give all or none")
    if processes == 1:
        return
    _check(coordinator, processes, process)
    if names is not _VARIABLES:
        _check_name(coordinator)
    with _deadline(timeout, f"all {processes} processes with {names[0]} {coordinator}"):
        if names is _VARIABLES:  # where machines get their names when they start, as pods do
            _wait_for_name(coordinator)
        _start(
            timeout,
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            cluster_detection_method="deactivate",
        )


def _from_variables(
    environment: Mapping[str, str],
) -> tuple[str | None, int | None, int | None]:
    """Coordinator, number of processes and this one's number, as far as the environment has them.

    Raises:
      UserError: a number is none.
    """

    def number(name: str) -> int | None:
        text = environment.get(name)
        if text is not None and not text.isdecimal():
            raise UserError(f"the environment has {name}={text}: it must be a number")
        return None if text is None else int(text)

    return environment.get(_VARIABLES[0]), number(_VARIABLES[1]), number(_VARIABLES[2])


def several_processes(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process was started as one of several."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else 0

    # A Slurm allocation is not yet a step: in a shell of one, `python` is a single process.
    slurm_step = "SLURM_STEP_ID" in environment or "SLURM_PROCID" in environment
    return (
        "," in environment.get("TPU_PROCESS_ADDRESSES", "")
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or number("MEGASCALE_NUM_SLICES") > 1
        or (slurm_step and number("SLURM_NTASKS") > 1)
        or number("OMPI_COMM_WORLD_SIZE") > 1
    )


def _machines_of_this_slice() -> int:
    """As `machines_of_tpu_slice`.

    Raises:
      UserError: the metadata cannot be read.
    """
    try:
        return machines_of_tpu_slice()
    except Exception as error:  # whatever the network and the parsing raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the metadata of this TPU machine cannot be read ({reason}): if it works alone, set "
            "TPU_SKIP_MDS_QUERY=1, otherwise give --coordinator, --processes and --process"
        ) from error


def _check(coordinator: str, processes: int, process: int) -> None:
    """Finds at once what JAX would only meet at the end of the timeout, and abort for."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator {coordinator}: it must be HOST:PORT of process 0")
    if not 0 <= process < processes:
        raise UserError(f"--process {process}: with --processes {processes} it must be 0 or more "
                        f"and below {processes}")  # fmt: skip
    if process == 0:
        try:
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"--coordinator {coordinator}: process 0 cannot listen on port {port} "
                f"({error.strerror}): choose another port"
            ) from None


def _look_up(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    socket.getaddrinfo(host.strip("[]"), int(port))


def _check_name(coordinator: str) -> None:
    try:
        _look_up(coordinator)
    except OSError as error:
        raise UserError(
            f"--coordinator {coordinator}: the host is unknown ({error.strerror})"
        ) from None


def _wait_for_name(coordinator: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            return _look_up(coordinator)
        time.sleep(1)


@contextlib.contextmanager
def _deadline(timeout: float, whom: str) -> Iterator[None]:
    def give_up() -> None:
        print(
            f"error: waited {timeout:.0f} s for {whom}: check that each was started, that the "
            "numbers differ, and that process 0 can be reached",
            file=sys.stderr,
            flush=True,
        )
        os._exit(UNAVAILABLE)  # machines that start late come in time when it runs again

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start(timeout: float, **how: object) -> None:
    try:
        # Longer than our own deadline, which speaks more clearly.
        jax.distributed.initialize(
            initialization_timeout=round(timeout) + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            **how,  # type: ignore[arg-type]
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the processes of the run did not find each other: {reason}") from error
