"""The page of ``bsq-jax demo``: its server, what is computed for it, and its files."""
