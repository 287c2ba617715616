"""Experiments that answer a question about the method: ``python -m bsq_jax.cli.studies.NAME``."""
