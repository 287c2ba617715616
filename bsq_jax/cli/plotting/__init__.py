"""What ``bsq-jax plot`` draws: metrics of runs, read and chosen."""
