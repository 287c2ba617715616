"""The parts of JAX without public names still work. Oracle: what public names say of the same.

When a test fails here, the installed release of JAX has moved what ``core/jax_private.py`` needs.
"""

import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bsq_jax.core import jax_private
from bsq_jax.core.sharding import make_mesh
from bsq_jax.training.compiled import work

BROKEN = f"written for JAX 0.10 to 0.12, broken by {jax.__version__}"

IN_A_PROCESS = """
import socket, jax
from bsq_jax.core import jax_private
assert not jax_private.backends_started(), "backends_started before"
assert jax_private.coordination_client() is None, "coordination_client of one process"
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", 1, 0)
client = jax_private.coordination_client()
client.key_value_set("folder/a", "1")
client.key_value_set("folder/a", "2", allow_overwrite=True)
assert client.key_value_try_get("folder/a") == "2", "key_value_try_get"
assert client.key_value_dir_get("folder") == [("folder/a", "2")], "key_value_dir_get"
jax.devices()
assert jax_private.backends_started(), "backends_started after"
"""


@pytest.mark.smoke
def test_backends_and_the_key_value_store():
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, f"{BROKEN}: {done.stderr[-500:]}"


@pytest.mark.smoke
def test_this_machine_is_no_tpu_slice_and_cudnn_has_a_number(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    try:
        assert jax_private.machines_of_tpu_slice() == 1
        assert jax_private.cudnn_version() >= 0
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{BROKEN}: {error}")


@pytest.mark.smoke
def test_compiled_programs_read_as_before(eight_devices):
    """An all-reduce of 8 numbers in each of 5 rounds of a loop: 160 bytes of float32."""
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    parts = NamedSharding(mesh, PartitionSpec("data", None))
    whole = NamedSharding(mesh, PartitionSpec())

    def program(x):
        def body(total, _):
            return total + jax.lax.with_sharding_constraint((x * total[None]).sum(0), whole), None

        return jax.lax.scan(body, jnp.zeros(8), None, length=5)[0]

    jitted = jax.jit(program, in_shardings=parts, out_shardings=whole)
    compiled = jitted.lower(jax.ShapeDtypeStruct((16, 8), jnp.float32)).compile()
    assert work(compiled).collectives == {"all-reduce": (5, 160)}, f"{BROKEN}: serialized HLO"


def test_programs_of_a_jitted_function_are_counted():
    """`bsq_jax.inference.streaming.Programs.compiled`."""
    function = jax.jit(lambda x: x + 1)
    assert hasattr(function, "_cache_size"), f"no jit(f)._cache_size: {BROKEN}"
    for size in (1, 2, 2):
        function(jnp.zeros(size))
    assert function._cache_size() == 2, f"jit(f)._cache_size counts otherwise: {BROKEN}"


def test_the_version_of_cudnn_has_its_place():
    """`bsq_jax.core.target.cudnn_version`; None without CUDA."""
    lib = importlib.import_module("jax._src.lib")
    assert hasattr(lib, "cuda_versions"), f"no jax._src.lib.cuda_versions: {BROKEN}"
    versions = lib.cuda_versions
    assert versions is None or callable(versions.cudnn_get_version), BROKEN
