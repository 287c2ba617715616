#!/usr/bin/env bash
# Trains a small BSQ-ViT on photographs from scikit-image and scikit-learn, and writes
# reconstructions of validation photographs. Needs Python 3.11 or newer and some minutes on a
# laptop.
#
#   bash launch/quickstart.sh [FLAG...]     e.g. --config.train.steps=500
#
# The flags are passed to bsq_jax.main; relative paths in them are relative to the repository.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment requirements.txt
exec "$VENV_PYTHON" -m bsq_jax.main --config configs/quickstart.py --workdir runs/quickstart "$@"
