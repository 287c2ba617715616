"""The trainings of a study, each in a process of its own.

A training that needs more memory or time than it may have then is a result of the study and not its
end, and the largest memory of a process is that of one training. The process is this module with
the folder of the training, where it finds its config and leaves its outcome and a log. An outcome
that is there is not computed again, and a training that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.config import finalize, from_json, to_json
from bsq_jax.config.values import differing_keys
from bsq_jax.core.errors import INTERRUPTED, RUN_AGAIN, Interrupted, NonFiniteError, UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.training.workdir import goes_on

REQUEST, OUTCOME, LOG = "request.json", "outcome.json", "log.txt"
_BEGUN = "begun"
_PATIENCE = 60  # seconds for a process that is told to stop, until it is killed


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a training may use.

    Attributes:
      seconds: from the start of its process to the end of its evaluation.
      gib: memory of a training step on a device, by the plan.
    """

    seconds: float
    gib: float


def outcome(
    config: ConfigDict, folder: pathlib.Path, limits: Limits, *, trains: bool = True
) -> dict[str, Any]:
    """Plans, trains and evaluates a model in a process of its own, if that is not done yet.

    Args:
      config: a finalised config.
      folder: becomes the workdir of the training.
      limits: what it may use.
      trains: False to plan it only.

    Returns:
      ``status``: ``done``, ``planned``, or why there is no result, such as ``out of memory``; where
      known ``parameters`` and ``step_bytes``, memory of a training step on a device by the plan,
      its state included. Of a training that was done also ``results``, the metrics of its averaged
      weights, ``ms``, median time of a step in milliseconds, and ``process_bytes``, the largest
      memory of the process.

    Raises:
      UserError: the folder has a training with other settings, or the process failed otherwise.
      Interrupted: Ctrl-C; the training is saved.
    """
    request = {"config": to_json(config), "limits": dataclasses.asdict(limits), "trains": trains}
    found = _found(folder, request)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME).unlink(missing_ok=True)
    _write(folder / REQUEST, request)
    command = [sys.executable, "-m", __name__, str(folder)]
    status = run_apart(command, folder / LOG, limits.seconds)
    if status == RUN_AGAIN:
        raise SystemExit(RUN_AGAIN)
    if status == INTERRUPTED:
        raise Interrupted(f"finished trainings are kept; in {folder} {goes_on(folder)}")
    made = _read(folder / OUTCOME)
    if status is None:
        done = f"{_saved_steps(folder)} of {config.train.steps} steps"
        made |= {"status": f"out of time after {done}", **_rate(folder)}
    elif status == -signal.SIGKILL:
        made["status"] = "killed, probably for its memory"
    elif status:
        raise UserError(f"a training ended with status {status}: read {folder / LOG}")
    elif "mistake" in made:
        raise UserError(made["mistake"])
    _write(folder / OUTCOME, made)
    return made


def _found(folder: pathlib.Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The outcome that is there, unless other limits may give a better one."""
    before, made = _read(folder / REQUEST), _read(folder / OUTCOME)
    if not before:
        return None
    if differ := differing_keys(before["config"], request["config"]):
        raise UserError(f"{folder} has other settings ({differ[0]}): give another --workdir")
    if made.get("status", _BEGUN) == _BEGUN:
        return None
    return made if before == request or made["status"] == "done" else None


def run_apart(command: Sequence[str], log: pathlib.Path, seconds: float) -> int | None:
    """Runs a command whose output goes to the end of a file; SIGTERM is passed on to it.

    So is Ctrl-C, as a SIGTERM; a second one kills it.

    Returns:
      Its exit status; `RUN_AGAIN` after SIGTERM and `INTERRUPTED` after Ctrl-C; None if `seconds`
      were over, and it was stopped.
    """
    told: list[int] = []
    status: int | None

    def stop(number: int, _: object) -> None:
        again = number == signal.SIGINT and number in told
        told.append(number)
        if again:
            process.kill()
            return
        process.terminate()
        if number == signal.SIGINT:
            print(
                f"Ctrl-C: the training in {log.parent} finishes its step and saves; press it again "
                "to leave at once",
                file=sys.stderr,
            )

    with log.open("ab") as file:
        # What a terminal sends to both of them the command ignores: it is told by this process.
        before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
        try:
            process = subprocess.Popen(command, stdout=file, stderr=file)
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
            if before[signal.SIGINT] != signal.SIG_IGN:
                signal.signal(signal.SIGINT, stop)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None  # unless it was told to stop before, see below
            finally:
                process.terminate()
                try:
                    process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if signal.SIGINT in told:
        return INTERRUPTED
    return RUN_AGAIN if told else status


def _saved_steps(folder: pathlib.Path) -> int:
    from bsq_jax.training.workdir import CHECKPOINTS

    names = [path.name for path in (folder / CHECKPOINTS).glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _rate(folder: pathlib.Path) -> dict[str, float]:
    """``ms`` of a step, median over the lines of the log; nothing where there is none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rates = [line.get("images_per_second") for line in map(json.loads, lines)]
    known = [rate for rate in rates if rate]
    if not known:
        return {}
    batch = _read(folder / REQUEST)["config"]["train"]["batch_size"]
    return {"ms": 1e3 * batch / statistics.median(known)}


# --- in the process ---


def main(folder: pathlib.Path) -> int:
    """Does what the request in a folder asks, and writes the outcome there."""
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    request = _read(folder / REQUEST)
    try:
        config = finalize(from_json(request["config"], str(folder / REQUEST)))
        made = _plan_and_train(config, folder, request)
    except UserError as error:
        made = {"mistake": str(error)}
    if made is None:
        return RUN_AGAIN
    _write(folder / OUTCOME, made)
    return 0


def _plan_and_train(
    config: ConfigDict, folder: pathlib.Path, request: dict[str, Any]
) -> dict[str, Any] | None:
    """The outcome; None if the training was told to stop."""
    from bsq_jax.core.sharding import make_mesh
    from bsq_jax.training import step_cost, train_run

    try:
        planned = step_cost.plan(config, make_mesh(**config.mesh.to_dict()))
    except step_cost.DoesNotFitError:
        return {"status": "out of memory by the plan"}
    made = {"parameters": planned["parameters"], "step_bytes": planned["memory"]["peak"]}
    if made["step_bytes"] > request["limits"]["gib"] * 2**30:
        return {"status": "out of memory by the plan", **made}
    if not request["trains"]:
        return {"status": "planned", **made}
    _write(folder / OUTCOME, {"status": _BEGUN, **made})
    try:
        status = train_run.train(config, folder)
    except NonFiniteError as error:
        return {"status": f"failed: {error}", **made}
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"status": "out of memory", **made}
    if status:
        return None
    results = _read(folder / "evaluation.json")["results"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "status": "done",
        **made,
        **_rate(folder),
        "process_bytes": most * (1 if sys.platform == "darwin" else 1024),
        "results": results.get("ema", results["raw"]),
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What `_write` wrote; empty where there is no file."""
    return json.loads(path.read_bytes()) if path.exists() else {}


def _write(path: pathlib.Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
