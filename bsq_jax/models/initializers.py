"""How parameters start, and the logical names of their axes, by which they are sharded."""

import flax.linen as nn

STDDEV = 0.02  # published


def kernel(*names: str | None) -> nn.initializers.Initializer:
    """Truncated normal (at two deviations of 0.02) for a matrix with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(STDDEV), names)


def embedding(*names: str | None) -> nn.initializers.Initializer:
    """Normal of deviation 0.02 for a learned embedding with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(STDDEV), names)


def bias(*names: str | None) -> nn.initializers.Initializer:
    """Zeros for a bias or an embedding that must start without effect."""
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), names)


def scale(*names: str | None) -> nn.initializers.Initializer:
    """Ones for the scale of a layer norm."""
    return nn.with_logical_partitioning(nn.initializers.ones_init(), names)


def spread(deviation: float) -> nn.initializers.Initializer:
    """Normal of another deviation, for a parameter that every device holds whole."""
    return nn.initializers.normal(deviation)
