"""Compiled programs on disk, so that a second run of the same program starts faster."""

import os
import pathlib

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs in ``$XDG_CACHE_HOME/bsq_jax`` (``~/.cache/bsq_jax``).

    A folder that JAX has been given already, for example by JAX_COMPILATION_CACHE_DIR, stays.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(root) / "bsq_jax"))
