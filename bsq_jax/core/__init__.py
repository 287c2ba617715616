"""What every other floor stands on: it knows JAX, Orbax and the file system, and no model."""
