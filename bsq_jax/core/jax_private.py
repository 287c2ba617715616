"""What this package needs of JAX that has no public name, one function for each.

Written for JAX 0.10 to 0.12; ``tests/test_jax_private.py`` says which of them a release has broken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def coordination_client() -> Any:
    """The client of the key-value store that the processes of a run share; None in a single one.

    `jax.distributed` starts it, and gives no access to it.
    """
    from jax._src import distributed

    return distributed.global_state.client


def backends_started() -> bool:
    """Whether JAX has looked for devices, after which flags of XLA have no effect any more."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def machines_of_tpu_slice() -> int:
    """How many TPU machines of Google Compute Engine work together here; 1 on other machines.

    Their metadata say so, and no variable; on a machine without TPUs nobody is asked. JAX raises
    whatever the network and the parsing raise.
    """
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1


def cudnn_version() -> int:
    """Version of cuDNN as it writes it, such as 91100 for 9.11; 0 where there is none."""
    from jax._src.lib import cuda_versions

    return cuda_versions.cudnn_get_version() if cuda_versions is not None else 0


@contextlib.contextmanager
def described_cudnn(capability: tuple[int, int], version: int) -> Iterator[None]:
    """Lets JAX lower cuDNN's flash attention for a GPU that is elsewhere.

    JAX asks the machine that it runs on, while a program is traced and while it is lowered.

    Args:
      capability: compute capability of the GPU.
      version: of its cuDNN, see `cudnn_version`.
    """
    from jax._src.cudnn import fused_attention_stablehlo as asking

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    answers = {
        "check_cudnn_version": lambda: version,
        "check_compute_capability": lambda text: capability >= number(text),
        "is_cuda_compute_capability_equal": lambda text: capability == number(text),
    }
    before = {name: getattr(asking, name) for name in answers}
    for name, answer in answers.items():
        setattr(asking, name, answer)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(asking, name, function)
