"""Checkpoints that survive ``kill -9``, a full disk and a flipped bit.

Orbax writes the arrays (asynchronously, sharded, from every host) and renames the finished folder
into place; then the processes together make checksums of all its files. A checkpoint counts as
complete only when those exist and match. Older checkpoints go only after a newer one is complete,
so at every moment of a run at least one complete checkpoint is on disk.

Layout of the folder: ``<step>/state`` (Orbax, the pytree of arrays), ``<step>/meta`` (JSON) and
``<step>/checksums.json``. All hosts must see the same file system. Steps, pruning and completeness
are ours rather than those of Orbax's ``CheckpointManager``, which counts a checkpoint as good, and
removes an older one for it, without having looked at a single byte.
"""

import dataclasses
import os
import re
import threading
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.trees import first_difference, leaves
from bsq_jax.training.checkpoint_folder import CheckpointFolder
from bsq_jax.training.process_zero import from_process_zero

_PATIENCE = 20.0  # seconds for a save under way when the run has failed


class Checkpointer:
    """Saves and restores the state of a run; every process of the run makes one and calls it alike.

    Args:
      directory: where the checkpoints are, one folder a step; made by the first save.
      keep: how many complete checkpoints stay on disk, at least 1; with 2 a damaged newest one
        leaves one to fall back to.

    Raises:
      UserError: for a ``keep`` below 1 or a URL in place of a path.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
        if keep < 1:
            raise UserError(f"keep={keep} would leave no checkpoint: keep at least 1")
        self._folder = CheckpointFolder(local_path(directory).absolute(), keep)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
            )
        )
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._current: int | None = None  # the step that was restored or saved last
        self._complete: int | None = None
        self._under_way: int | None = None
        self._room_made = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:
            self.close()
        elif self._thread is not None:
            # The others may never come to a barrier, so this process waits for its own part alone.
            self._thread.join(_PATIENCE)

    @property
    def complete(self) -> int | None:
        """The newest step that is known here to be complete on disk; None if there is none."""
        return self._complete

    @property
    def under_way(self) -> int | None:
        """The step that is being saved, if one is."""
        return self._under_way

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to save and returns; waits first for a save that still runs.

        The arrays are copied before it returns, so they may be donated right afterwards. The step
        that was restored or saved last is on disk already and is not written again.

        Args:
          step: the number of steps done, which names the checkpoint.
          state: pytree of ``jax.Array``.
          meta: what JSON can hold: config, data position, history of metrics.

        Raises:
          UserError: the previous save failed for want of disk space or rights, or the folder holds
            a complete checkpoint that is newer than the one this run started from.
        """
        self.wait()
        if step == self._current:
            return
        if not self._room_made:
            from_process_zero(self._make_room)
            self._room_made = True
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._under_way = step
        try:
            self._orbax.save(self._folder.of_step(step), args=args)
        except (OSError, ValueError) as error:
            self._raise(step, error)
        # Not a daemon: a main thread that ends early still leaves a complete checkpoint.
        self._thread = threading.Thread(target=self._finish, args=(step,), name="checksums")
        self._thread.start()
        self._current = step

    def wait(self) -> None:
        """Returns when the save under way is complete, on every process.

        Raises:
          UserError: it could not be written.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            step, self._current = self._current, None
            self._raise(step, error)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint complete")
        self._complete, self._under_way = self._current, None

    def close(self) -> None:
        """Waits for the save under way and frees Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None where no save was ever completed.

        Every checkpoint passed over is named in one warning. Files are read once: what has been
        found complete or damaged is remembered.

        Raises:
          UserError: there are checkpoints that were complete once, and all are damaged.
        """
        self.wait()
        return self._folder.latest()

    def kept_steps(self) -> list[int]:
        """Steps of all checkpoints that were completed, newest first; their files are not read."""
        self.wait()
        return self._folder.kept()

    def read_meta(self, step: int | None = None) -> dict[str, Any] | None:
        """The ``meta`` of a complete checkpoint, or None where there is none.

        Args:
          step: one of `kept_steps`; None: that which ``restore_latest`` would take.

        Raises:
          UserError: there are checkpoints, and all are damaged, or that of `step` is.
        """
        if step is not None:
            self._folder.check(step)
        else:
            step = self.latest_step()
        return None if step is None else self._read_meta(step)

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest complete checkpoint onto the devices.

        Args:
          abstract_state: pytree of ``jax.ShapeDtypeStruct``, each with the ``sharding`` its array
            shall have; this need not be the mesh that saved it. Fields of a dataclass that the
            checkpoint does not know, of an older version, must be without leaves.

        Returns:
          ``(step, state, meta)`` with the state in the structure of ``abstract_state``; None where
          no save was ever completed.

        Raises:
          UserError: all checkpoints are damaged, or the newest complete one belongs to another
            model; the message names the first leaf that differs.
        """
        for name, leaf in leaves(abstract_state).items():
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(f"abstract_state: {name!r} has no sharding to be restored onto")
        step = self.latest_step()
        if step is None:
            return None
        folder = self._folder.of_step(step)
        saved = self._saved_tree(step)
        fields = getattr(abstract_state, "__dataclass_fields__", ())
        later = {name: getattr(abstract_state, name) for name in fields if name not in saved}
        if new := next((name for name, field in later.items() if jax.tree.leaves(field)), None):
            raise UserError(
                f"the checkpoint {folder} was written before runs had '{new}': begin a new run "
                "from its weights, with another workdir and train.init"
            )
        difference = first_difference(saved, abstract_state)
        if difference is not None:
            raise UserError(
                f"the checkpoint {folder} belongs to another model: {difference}; "
                "take the config it was trained with, or another workdir"
            )
        # Orbax wants to find fields without leaves too, so those that came later are not asked for.
        wanted = abstract_state
        if later:
            wanted = {name: getattr(abstract_state, name) for name in fields if name in saved}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        state = self._orbax.restore(folder, args=args)["state"]
        if later:
            state = dataclasses.replace(abstract_state, **state)
        meta = self._read_meta(step)
        self._current = self._complete = step
        return step, state, meta

    def restore_partial(
        self, keys: Sequence[str], step: int | None = None
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Reads some fields of a complete checkpoint into host memory, and nothing else.

        This is how a model is taken from a workdir without its optimizer state.

        Args:
          keys: names at the top of the state, such as ``params`` or ``ema``.
          step: one of `kept_steps`; None: the newest complete one.

        Returns:
          ``(step, {key: nested dict of numpy arrays}, meta)``.

        Raises:
          UserError: there is no checkpoint, all are damaged, or it has no such key.
        """
        if step is not None:
            self._folder.check(step)
        else:
            step = self.latest_step()
        if step is None:
            raise UserError(f"there is no checkpoint in {self._folder.path}: train first")
        folder = self._folder.of_step(step)
        tree = self._saved_tree(step)
        for key in keys:
            if not jax.tree.leaves(tree.get(key)):
                filled = [name for name in tree if jax.tree.leaves(tree[name])]
                raise UserError(f"the checkpoint {folder} has no {key!r}, only {filled}")
        wanted = {
            key: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree[key])
            for key in keys
        }
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = reader.restore(
                folder / "state",
                args=ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True),
            )
        return step, state, self._read_meta(step)

    def _read_meta(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._orbax.restore(self._folder.of_step(step), args=args)["meta"]

    def _saved_tree(self, step: int) -> dict[str, Any]:
        """Shapes and types of a saved state, as nested dicts and lists, without reading it."""
        return self._orbax.metadata(self._folder.of_step(step)).item_metadata["state"].tree

    def _make_room(self) -> None:
        """Prepares the folder for the first save (process 0 alone)."""
        try:
            self._folder.make_room(-1 if self._current is None else self._current)
        except OSError as error:
            self._raise(None, error)

    def _finish(self, step: int) -> None:
        """Background: waits for Orbax, then completes the checkpoint."""
        try:
            self._orbax.wait_until_finished()
            self._folder.finish(step)
            if jax.process_index() == 0:  # the others know only after the barrier in `wait`
                self._complete, self._under_way = step, None
        except BaseException as error:  # raised where the next call of this object meets it
            self._error = error

    def _raise(self, step: int | None, error: BaseException) -> NoReturn:
        """Raises a ``UserError`` for a full disk and the like; any other error as it is."""
        # TensorStore, which writes the arrays for Orbax, raises ValueError for everything.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif isinstance(error, ValueError) and code is not None:
            reason = os.strerror(int(code[1]))
        else:
            raise error
        what = f"the checkpoint of step {step}" if step is not None else "checkpoints"
        raise UserError(
            f"cannot write {what} to {self._folder.path}: {reason}; make room or take another "
            "workdir, then run again to continue"
        ) from error
