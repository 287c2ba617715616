"""``python -m bsq_jax COMMAND``."""

import sys

from bsq_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
