#!/usr/bin/env bash
# Trains a small BSQ-ViT on photographs from scikit-image and scikit-learn, and writes
# reconstructions of validation photographs. Needs Python 3.11 or newer and some minutes on a
# laptop.
#
#   bash launch/quickstart.sh [FLAG...]     e.g. --config.train.steps=500
#
# The flags are passed to bsq_jax.main; relative paths in them are relative to the repository.
# Afterwards the environment has the package from every folder (import bsq_jax) and the command
# bsq-jax; without an active environment, after `source .venv/bin/activate`.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  # shellcheck source=launch/common.sh
  source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
  help_of "${BASH_SOURCE[0]}"
  exit
fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment requirements.txt
install_package
exec "$VENV_PYTHON" -m bsq_jax.main --config configs/quickstart.py --workdir runs/quickstart "$@"
