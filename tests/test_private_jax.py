"""Private names of JAX that this package uses; written for jax 0.10 to 0.12."""

import importlib

import jax
import jax.numpy as jnp

WRITTEN_FOR = "written for jax 0.10 to 0.12; this is jax " + jax.__version__


def test_programs_of_a_jitted_function_are_counted():
    """`bsq_jax.inference.streaming.Programs.compiled`."""
    function = jax.jit(lambda x: x + 1)
    assert hasattr(function, "_cache_size"), f"no jit(f)._cache_size: {WRITTEN_FOR}"
    for size in (1, 2, 2):
        function(jnp.zeros(size))
    assert function._cache_size() == 2, f"jit(f)._cache_size counts otherwise: {WRITTEN_FOR}"


def test_the_version_of_cudnn_has_its_place():
    """`bsq_jax.core.target.cudnn_version`; None without CUDA."""
    lib = importlib.import_module("jax._src.lib")
    assert hasattr(lib, "cuda_versions"), f"no jax._src.lib.cuda_versions: {WRITTEN_FOR}"
    versions = lib.cuda_versions
    assert versions is None or callable(versions.cudnn_get_version), WRITTEN_FOR
