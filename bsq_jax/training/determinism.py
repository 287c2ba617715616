"""The same run twice to the bit on GPUs, where XLA does not give that by itself.

XLA for GPUs measures which of several kernels is fastest whenever it compiles, so that another
start of the same run may sum in another order; and atomic additions, in scatters and in the
backward pass of cuDNN's attention, sum in an order that nobody fixes. One flag of XLA turns both
off: ``--xla_gpu_deterministic_ops`` implies ``--xla_gpu_exclude_nondeterministic_ops`` and compiles
without autotuning. It makes compilation fail for the gradient of a window maximum, which no network
trained here has. CPUs and TPUs need nothing.
"""

from __future__ import annotations

import os

from bsq_jax.core.errors import UserError
from bsq_jax.core.jax_private import backends_started
from bsq_jax.core.target import platform

FLAG = "--xla_gpu_deterministic_ops"
_ON = f"{FLAG}=true"


def ask_for() -> None:
    """Makes XLA compile deterministic programs; to be called before JAX is asked for devices.

    Raises:
      UserError: JAX runs on GPUs already, without the flag.
    """
    if _is_on():
        return
    # XLA reads its flags once, when the first backend starts.
    if backends_started():
        if platform() == "gpu":
            raise UserError(
                f"train.deterministic=true: JAX was started without it, set XLA_FLAGS={_ON} before"
            )
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ON}".strip()


def _is_on() -> bool:
    words = [w for w in os.environ.get("XLA_FLAGS", "").split() if w.partition("=")[0] == FLAG]
    return bool(words) and words[-1] in (FLAG, _ON, f"{FLAG}=1")  # the last one counts


def described(wanted: bool) -> str:
    """Whether runs repeat to the bit, as a line for the log; empty where that goes without saying.

    Args:
      wanted: ``train.deterministic``.
    """
    if platform() != "gpu":
        # Not to be told by every run; but who set the key should know.
        return f"train.deterministic: nothing to do on a {platform()}" if wanted else ""
    if _is_on():
        return (
            f"deterministic ({_ON}): resumed on as many GPUs of this kind, with these versions, "
            "the run is the same to the bit"
        )
    return (
        "not deterministic: on GPUs a resumed run differs in the last bits from one that never "
        "stopped; train.deterministic=true makes them the same, with slower kernels"
    )
