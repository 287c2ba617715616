"""The same bits from the prior however JAX is set. Oracle: this process, with eight devices."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_codec import make_codec, picture

from bsq_jax.models.prior.entropy_coder import Encoder

SETTINGS = {
    "x64": {"JAX_ENABLE_X64": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    "fast": {
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    },
}
ORDERS = ("raster", "grids")

_CODE = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
import numpy as np
import test_compression_settings as own
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for order in own.ORDERS:
    codec = own.make_codec(order)
    decoded = codec.decode((folder / f"{{order}}.bsq").read_bytes())
    assert not decoded.problem, decoded.problem
    np.save(folder / f"{{order}} {{name}}.npy", decoded.frames)
    (folder / f"{{order}} {{name}}.bits").write_bytes(own.coded(codec))
print(jax.config.jax_enable_x64, jax.device_count())
"""


def coded(codec):
    """What the prior makes of tokens that do not depend on a tokenizer's rounding."""
    tokens = np.random.default_rng(3).integers(0, 2, (4, 5, 4, 6)).astype(np.uint8)
    grids = tokens.reshape(4, 5, 2, 2, 6).swapaxes(1, 2).reshape(4, 2, 10, 6)  # five tiles in a row
    stream, encoder = codec._coder.stream(2, 10, 6), Encoder()
    for frame in grids:
        stream.encode(frame, encoder)
    return encoder.result()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.usefixtures("eight_devices")
def test_files_decode_however_jax_is_set(name, tmp_path):
    """Every checksum is right in a process with other settings, and its bytes are the same."""
    assert jax.device_count() == 8
    codecs = {order: make_codec(order) for order in ORDERS}
    frames = picture(24, 20, 2)
    for order, codec in codecs.items():
        (tmp_path / f"{order}.bsq").write_bytes(codec.encode(frames, 25))
    tests = pathlib.Path(__file__).parent
    unset = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"PYTHONPATH": str(tests.parent), **SETTINGS[name]}
    code = _CODE.format(tests=str(tests), cache=jax.config.jax_compilation_cache_dir)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), name],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(name == "x64"), "1"]
    for order, codec in codecs.items():
        assert (tmp_path / f"{order} {name}.bits").read_bytes() == coded(codec)
        shown = np.load(tmp_path / f"{order} {name}.npy").astype(int)
        wanted = codec.decode((tmp_path / f"{order}.bsq").read_bytes()).frames
        assert np.abs(shown - wanted).max() <= 1  # pixels come from floating point
