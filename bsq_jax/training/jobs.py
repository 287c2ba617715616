"""The jobs of the command line, put together from a config."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bsq_jax.config import from_json, to_json
from bsq_jax.core.errors import RUN_AGAIN, UserError
from bsq_jax.core.sharding import batch_shards, make_mesh
from bsq_jax.core.target import full_precision
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.factory import make_data_config
from bsq_jax.evaluation.report import weight_sets
from bsq_jax.training import determinism, maintenance
from bsq_jax.training import loop as train
from bsq_jax.training.export import is_export
from bsq_jax.training.flops import total_peak_flops
from bsq_jax.training.initial_state import place
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.profiling import Profiler, Startup
from bsq_jax.training.recipes import Recipe, make_recipe
from bsq_jax.training.saved_models import check_same_model, load_saved_model
from bsq_jax.training.state import TrainState
from bsq_jax.training.useful_flops import step_flops
from bsq_jax.training.workdir import (
    check_resumable,
    open_checkpoints,
    read_meta,
    with_saved_init,
    write_config,
)

# Settings of the data that an evaluation's numbers depend on.
_MEASURE_KEYS = (
    *("source", "val_source", "eval_filter", "eval_resize", "eval_crop"),
    *("frames", "stride", "eval_clips"),
)


def train_job(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
) -> int:
    """Trains or resumes, then evaluates; prints the table and the paths of the pictures.

    Args:
      config: a finalised config.
      workdir: folder of the run.
      profile: first and last step to record with JAX's profiler.
      began: when the program began, on the clock `time.monotonic`; None for now.

    Returns:
      Exit status: 0 when done, `RUN_AGAIN` when stopped by SIGTERM with everything saved.

    Raises:
      UserError: the workdir holds another model, the data cannot be read, a loss is not finite.
    """
    startup = Startup(began)
    steps, batch_size = config.train.steps, config.train.batch_size
    if is_export(workdir):
        raise UserError(
            f"{workdir} is an export: give another --workdir with --config.train.init={workdir}"
        )
    mesh = make_mesh(**config.mesh.to_dict())
    if batch_size % (config.train.accumulate * batch_shards(mesh)):
        raise UserError(
            f"train.batch_size {batch_size} does not divide into {config.train.accumulate} "
            f"micro-batches (train.accumulate) over {batch_shards(mesh)} devices (data x fsdp)"
        )
    with open_checkpoints(workdir, keep=config.train.keep) as checkpointer:
        meta = checkpointer.read_meta()
        if meta is not None:
            config = with_saved_init(config, meta, workdir)
        recipe = make_recipe(config, workdir, mesh)
        recipe.check()
        task = recipe.task
        history: list[dict[str, Any]] = []
        note, sizes = "", BatchSizes(((0, batch_size),))
        if meta is None:
            state, note = recipe.new_state()
        else:
            check_resumable(config, meta, workdir)
            restored = checkpointer.restore_latest(task.abstract_state(mesh))
            assert restored is not None
            _, state, meta = restored
            history = meta["history"]
            sizes = _batch_sizes(meta, workdir)
        first = int(state.step)
        if first > steps:
            raise UserError(
                f"{workdir} is at step {first} already: raise config.train.steps above {steps}"
            )
        if profile is not None and not first < profile[0] <= profile[1] <= steps:
            raise UserError(
                f"--profile {profile[0]}:{profile[1]}: this run does the steps {first + 1} to "
                f"{steps}"
            )
        suffix = ""
        if first < steps:
            write_config(workdir, config)
            if sizes != (now := sizes.going_on(first, batch_size)):
                note = (
                    f"batch size {sizes.parts[-1][1]} -> {batch_size}: the data go on after the "
                    f"{now.examples(first):,d} examples seen so far"
                )
            sizes = now
        elif meta is not None:
            suffix = _suffix(config, meta)
        with Monitor(
            workdir,
            total_steps=steps,
            start_step=first,
            batch_size=batch_size,
            unit=recipe.unit,
            show=recipe.shown,
            history=history,
            peak_flops=total_peak_flops(mesh),
        ) as monitor:
            promise = determinism.described(config.train.deterministic)
            for line in [*recipe.greeting(state, first), *filter(None, [promise, note])]:
                monitor.info(line)

            def evaluate_now(state: TrainState, pictures: bool) -> dict[str, Any]:
                step = int(state.step)
                weights = weight_sets(state.params, state.ema)
                report = recipe.evaluate(weights, step, pictures=pictures, suffix=suffix)
                if suffix:
                    return report  # the run's metrics are of its own validation pictures
                for label, result in report["results"].items():
                    scalars = {k: v for k, v in result.items() if isinstance(v, int | float)}
                    monitor.log(step, scalars, prefix=f"val_{label}")
                for path in report["pictures"]:
                    monitor.image(step, pathlib.Path(path).stem, np.asarray(Image.open(path)))
                return report

            report, finished = None, True
            with train.StopSignal() as stop, maintenance.watched():
                if first < steps:
                    state, finished = train.train(
                        task,
                        mesh,
                        functools.partial(recipe.batches, earlier=sizes),
                        state=state,
                        steps=steps,
                        batch_size=batch_size,
                        checkpointer=checkpointer,
                        monitor=monitor,
                        stop=stop,
                        meta={"config": to_json(config), "batch_sizes": sizes.parts},
                        log_every=config.train.log_every,
                        checkpoint_every=config.train.checkpoint_every,
                        evaluate=evaluate_now,
                        evaluate_every=config.train.evaluate_every,
                        picture_every=config.train.picture_every,
                        count_flops=functools.partial(step_flops, task),
                        profiler=Profiler(workdir / "profile", profile),
                        startup=startup,
                    )
                else:
                    monitor.info(f"all {steps} steps are done: raise config.train.steps to go on")
                if finished:
                    stop.all_saved()
                    report = evaluate_now(state, True)
            if finished and report is None:
                monitor.info("stopped by a signal: all is saved, run again to evaluate")
    if report is None:
        return RUN_AGAIN
    _print_report(recipe, report)
    return 0


def _batch_sizes(meta: dict[str, Any], workdir: pathlib.Path) -> BatchSizes:
    """The batch sizes of the steps up to a checkpoint."""
    origin = f"the checkpoint in {workdir}"
    # Checkpoints that do not say them are of a time when a step's place was that of its own size.
    saved = meta.get("batch_sizes", [[0, from_json(meta["config"], origin).train.batch_size]])
    return BatchSizes.read(saved, origin)


def evaluate_job(config: ConfigDict, workdir: pathlib.Path) -> int:
    """Evaluates an export, or the newest complete checkpoint of a workdir; prints the table.

    With other pictures than the run's, or in another precision, the names of the files written end
    in a short hash of these settings, so that the run's own evaluation stays.

    Raises:
      UserError: there are no weights, they are damaged, or belong to another model.
    """
    mesh = make_mesh(**config.mesh.to_dict())
    if is_export(workdir):
        initial = load_saved_model(workdir, ("raw", "ema"))
        check_same_model(config, initial, workdir)
        recipe = make_recipe(_alone(config), workdir, mesh)
        wanted = recipe.task.abstract_state(mesh).params
        weights = {name: place(tree, wanted) for name, tree in initial.weights.items()}
        step, saved = initial.step, to_json(initial.config)
    else:
        recipe = make_recipe(config, workdir, mesh)
        with open_checkpoints(workdir) as checkpointer:
            meta = read_meta(checkpointer, workdir)
            check_resumable(config, meta, workdir)
            restored = checkpointer.restore_latest(recipe.task.abstract_state(mesh))
            assert restored is not None
            _, state, meta = restored
        weights = weight_sets(state.params, state.ema)
        step, saved = int(state.step), meta["config"]
    suffix = _suffix(config, {"config": saved})
    with full_precision(config.model.dtype):
        report = recipe.evaluate(weights, step, pictures=True, suffix=suffix)
    _print_report(recipe, report)
    return 0


def _alone(config: ConfigDict) -> ConfigDict:
    """The same without a second player, which evaluation has no use for."""
    config = config.copy_and_resolve_references()
    config.loss.adversarial = 0.0
    return config


def _suffix(config: ConfigDict, meta: dict[str, Any]) -> str:
    """What the names of an evaluation's files end in: nothing if it is done as in the run."""
    saved = from_json(meta["config"], "the checkpoint")
    own, asked = (
        [getattr(make_data_config(settings), key) for key in _MEASURE_KEYS] + [settings.model.dtype]
        for settings in (saved, config)
    )
    if own == asked:
        return ""
    return "_" + hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


def _print_report(recipe: Recipe, report: dict[str, Any]) -> None:
    if jax.process_index():
        return
    print()
    print(recipe.table(report))
    print(f"report: {report['path']}")
    for kind in ("picture", "video"):
        for path in report[f"{kind}s"]:
            print(f"{kind}: {path}")
    sys.stdout.flush()
