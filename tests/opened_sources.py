"""Sources opened whole, and what they say in the log."""

from bsq_jax.data.sources import make_source


def whole(spec):
    """All records of a source, which is not divided into splits."""
    return make_source(spec, "train", divide=False)


def lines(caplog, logger="bsq_jax"):
    """What one logger said: reading threads of an earlier test may still use another, absl."""
    found = [record.getMessage() for record in caplog.records if record.name == logger]
    assert all("\n" not in line for line in found)
    return found
