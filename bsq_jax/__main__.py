"""``python -m bsq_jax COMMAND``."""

from bsq_jax.cli import run_and_leave

if __name__ == "__main__":
    run_and_leave()
