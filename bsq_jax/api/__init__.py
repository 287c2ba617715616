"""Training from Python: `bsq_jax.train` and `bsq_jax.load_config`."""
