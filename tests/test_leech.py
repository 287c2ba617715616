"""Spherical Leech quantization.

Oracles: golden vectors of the published code, the lattice's known inner products, brute force over
all codes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config, finalize
from bsq_jax.quantizers import LeechQuantizer, make_quantizer
from bsq_jax.quantizers.leech import CODES

pytestmark = pytest.mark.smoke


def test_golden(golden):
    arrays = golden("l24sq")
    out = jax.jit(LeechQuantizer().encode)(arrays["latents"])
    np.testing.assert_allclose(out.quantized, arrays["quant"], atol=1e-6)
    clear = arrays["margin"] > 1e-5
    entries = np.rint(np.asarray(out.quantized) * np.sqrt(32))
    np.testing.assert_array_equal(entries[clear], arrays["quant_times_sqrt32"][clear])
    assert clear.all()
    assert out.losses == {}
    assert out.loss == 0


def test_of_a_config():
    config = default_config()
    config.quantizer.name, config.model.bits = "leech", 0
    quantizer = make_quantizer(finalize(config))
    assert isinstance(quantizer, LeechQuantizer)
    assert (quantizer.bits, quantizer.channels, quantizer.codes) == (18, 24, CODES)
    assert quantizer.names_code(jnp.ones(18, jnp.uint8)) == 0
