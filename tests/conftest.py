"""Settings shared by all tests: eight virtual devices, a compilation cache, strict shapes."""

import gc
import os
import pathlib
import tempfile
from importlib.metadata import version

# Most of a test's time is compilation. Without LLVM's optimisation that takes a third less, and
# half of the rest with the older way of making fused loops, which later releases of XLA lack; one
# module for each program costs less than the threads that compile parts of it.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
        if version("jaxlib").startswith("0.10.")
        else ""
    )
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The AV1 encoder reads it once, when the first test of this process encodes a video.
os.environ.setdefault("SVT_LOG", "0")
# Many tests train the same small models, here and in other processes, whose programs compile in
# less than the second from which on JAX keeps them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), "bsq_jax_test_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
import pytest

# Tracing makes many objects, few of them garbage: looking for it after every 700 of them takes a
# seventh of all time.
gc.set_threshold(50_000)
jax.config.update("jax_numpy_rank_promotion", "raise")
GOLDEN = pathlib.Path(__file__).parent / "golden"
_ALL = jax.devices  # the function


def _show(patch, count):
    """Lets the code see so many of the eight devices."""
    patch.setattr(jax, "devices", lambda *_: _ALL()[:count])
    patch.setattr(jax, "device_count", lambda *_: count)


@pytest.fixture(autouse=True, scope="module")
def devices(request):
    """One device, for which programs compile in less time; ``DEVICES = 8`` in a module: eight."""
    with pytest.MonkeyPatch.context() as patch:
        _show(patch, getattr(request.module, "DEVICES", 1))
        yield


@pytest.fixture
def eight_devices():
    """Eight devices for one test, of meshes."""
    with pytest.MonkeyPatch.context() as patch:  # the test may undo its own
        _show(patch, 8)
        yield


# The files that take longest begin, so that none of them is left to one core at the end.
LONG = (
    *("multihost", "resume", "every_quantizer", "masked_lm_task", "adversarial_task", "evaluate"),
    *("feature_metrics", "black_pictures", "accelerator_benchmark", "initial", "prior_task"),
    *("checkpoint", "plan", "cli_generate", "streaming", "compression", "causal_model"),
    *("batch_sizes", "cli_studies", "first_hour", "doc_commands"),
)


def pytest_collection_modifyitems(items):
    """Sorts the files of tests; within a file the order stays."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def golden():
    """Reader of the golden vectors kept beside the tests: ``golden('bsq')['L18/z']``."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return read
