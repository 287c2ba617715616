"""Devices to compile for that are not here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from bsq_jax.core.errors import UserError


def virtual_cpus(count: int) -> Sequence[Any]:
    """CPU devices that exist only in name.

    Raises:
      UserError: JAX was started before, with fewer.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX was started already: with as many as there are
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        raise UserError(f"the mesh has {count} devices, and JAX was started with {len(devices)}")
    return devices[:count]


def described_tpus(name: str) -> Sequence[Any]:
    """Devices of TPUs that are elsewhere.

    Raises:
      UserError: libtpu is missing or does not know them.
    """
    # This machine is none of them, and libtpu would look for what it is, and complain.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3", "TPU_WORKER_ID": "0"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    except Exception as error:  # whatever the plugin raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {name}: {reason} (it needs `pip install libtpu`, and a name such as "
            "v5p:2x4x4, v6e:4x4 or v5e:4x4)"
        ) from None
