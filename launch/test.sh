#!/usr/bin/env bash
# Runs the test suite.
#
#   bash launch/test.sh [ARGUMENT...]     e.g. -k metrics
#
# Arguments are passed to pytest. Two test files run in parallel; -n 0 runs them one by one.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment requirements.txt tests/requirements.txt
exec "$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
