"""Recording steps with JAX's profiler, and what the first one waits for."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from typing import Any

import jax


class Profiler:
    """Records some steps with JAX's profiler, for XProf, TensorBoard or Perfetto.

    Process 0 records its own devices; the others look alike and would write to the same folder.

    Args:
      folder: where the recording goes.
      steps: first and last step to record; None for none.
    """

    def __init__(self, folder: str | os.PathLike[str], steps: tuple[int, int] | None):
        self._folder = folder
        self._first, self._last = steps or (0, 0)
        self._recording = False

    def before(self, step: int, state: Any) -> None:
        """To be called before a step; waits for those before it if it is the first to record."""
        if step == self._first and jax.process_index() == 0:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._recording = True

    def after(self, step: int, state: Any) -> str | None:
        """To be called after a step, with its result; at the last one says where the recording is.

        Where the loop leaves earlier, `close` ends the recording.
        """
        return self.close(state) if step == self._last else None

    def close(self, state: Any) -> str | None:
        """Ends a recording under way, once the steps are done; says where it is."""
        if not self._recording:
            return None
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._recording = False
        return f"profile: {self._folder} (open it with XProf or TensorBoard)"


class Startup:
    """How long a run takes to its first step, and what of it is compilation.

    Args:
      began: when the program began, on the clock `time.monotonic`; None for now.
    """

    def __init__(self, began: float | None = None):
        self._began = time.monotonic() if began is None else began
        self._before = dataclasses.replace(_compiled())

    def __str__(self) -> str:
        """The time up to now, in a line."""
        total, before = _compiled(), self._before
        loaded = total.loaded - before.loaded
        made = total.programs - before.programs - loaded
        text = (
            f"first step after {time.monotonic() - self._began:.0f} s, of these "
            f"{total.seconds - before.seconds:.0f} s compiling: {made} programs made"
        )
        folder = getattr(jax.config, "jax_compilation_cache_dir", None)
        if folder is None or not getattr(jax.config, "jax_enable_compilation_cache", True):
            return f"{text}, without a compilation cache"
        return f"{text}, {loaded} found in {folder}"


@dataclasses.dataclass
class _Compiled:
    """What this process has compiled: seconds in XLA, programs, and how many a cache had."""

    seconds: float = 0.0
    programs: int = 0
    loaded: int = 0

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs
            self.programs += 1

    def _event(self, event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self.loaded += 1


@functools.cache
def _compiled() -> _Compiled:
    total = _Compiled()
    jax.monitoring.register_event_duration_secs_listener(total._duration)
    jax.monitoring.register_event_listener(total._event)
    return total
