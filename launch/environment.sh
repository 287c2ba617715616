# shellcheck shell=bash
# Shared by the scripts of this folder, which source it: a Python with the packages they need.
#
#   prepare_environment FILE...   installs these requirements files, and sets
#     REPOSITORY                  the root of the repository (also the current folder from then on)
#     VENV_PYTHON                 the Python of the environment
#   install_package               after it: makes this checkout importable from every folder in the
#                                 environment, and bsq-jax a command there (pip install --editable)
#
# An active virtual environment (venv or conda) is used as it is. Without one, .venv in the
# repository is used, and created first if necessary, with $PYTHON or the newest Python found.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_PYTHON=

# On Linux, large arrays in huge pages: fewer page faults on a CPU (docs/benchmarks.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints "3.12" for that Python, and nothing if it does not run, such as a stub on PATH.
python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

is_supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the Python with which to create an environment.
find_python() {
  local candidate version too_old='' no_venv=''
  local candidates=(python3.13 python3.12 python3.11 python3 python)
  if [[ -n ${PYTHON:-} ]]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    version=$(python_version "$candidate")
    if [[ -z $version ]]; then
      continue
    elif ! is_supported "$candidate"; then
      too_old=${too_old:-"$candidate is Python $version"}
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      no_venv=${no_venv:-"$candidate (Python $version)"}
    else
      printf '%s\n' "$candidate"
      return
    fi
  done
  if [[ -n $no_venv ]]; then
    fail "$no_venv cannot make virtual environments: install its venv package" \
      "(on Debian and Ubuntu: apt install python3-venv)"
  elif [[ -n $too_old ]]; then
    fail "$too_old, but Python 3.11 or newer is needed: install one, or name it in PYTHON=..."
  elif [[ -n ${PYTHON:-} ]]; then
    fail "PYTHON=$PYTHON does not run: name a Python 3.11 or newer"
  fi
  fail "no Python found: install Python 3.11 or newer, or name it in PYTHON=..."
}

# The hash of a requirements file together with the Python that it was installed for.
fingerprint() {
  "$VENV_PYTHON" - "$1" <<'PYTHON'
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    print(hashlib.sha256(file.read() + sys.version.encode()).hexdigest())
PYTHON
}

prepare_environment() {
  cd "$REPOSITORY" || exit
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} folder python file stamp wanted version
  if [[ -n $active ]]; then
    folder=$active
    VENV_PYTHON=$folder/bin/python
    version=$(python_version "$VENV_PYTHON")
    [[ -n $version ]] || fail "the active environment $folder has no working Python: deactivate it"
    is_supported "$VENV_PYTHON" || fail "the active environment $folder is Python $version, but" \
      "Python 3.11 or newer is needed: deactivate it or activate another"
  else
    folder=$REPOSITORY/.venv
    VENV_PYTHON=$folder/bin/python
    if ! is_supported "$VENV_PYTHON" || ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
      python=$(find_python)
      echo "Making a virtual environment in $folder with Python $(python_version "$python") ..."
      "$python" -m venv --clear "$folder"
    fi
  fi
  for file in "$@"; do
    stamp=$folder/.bsq-jax-${file//\//-}.sha256
    wanted=$(fingerprint "$file")
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
      echo "Installing $file into $folder (minutes, the first time) ..."
      "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --requirement "$file" ||
        fail "could not install $file: see pip's message above"
      printf '%s\n' "$wanted" >"$stamp"
    fi
  done
}

# Whether the environment imports the package from this checkout, wherever one is, and has bsq-jax.
has_package() {
  (cd / && "$VENV_PYTHON" -I - "$REPOSITORY" <<'PYTHON'
import importlib.util, os, sys, sysconfig
spec = importlib.util.find_spec("bsq_jax")
script = os.path.join(sysconfig.get_path("scripts"), "bsq-jax")
here = os.path.join(sys.argv[1], "bsq_jax", "__init__.py")
found = spec is not None and spec.origin and os.path.realpath(spec.origin) == os.path.realpath(here)
sys.exit(not (found and os.access(script, os.X_OK)))
PYTHON
  ) 2>/dev/null
}

# Not being able to is no failure: all commands run from the repository as they are.
install_package() {
  local isolation=() log line
  if has_package; then
    return
  fi
  # setuptools that is there is used as it is, which needs no network.
  if "$VENV_PYTHON" -c 'import setuptools, sys
sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null; then
    isolation=(--no-build-isolation)
  fi
  echo "Making bsq_jax importable and bsq-jax a command in this environment ..."
  if log=$("$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --retries 1 \
    --no-deps "${isolation[@]}" --editable "$REPOSITORY" 2>&1) && has_package; then
    return
  fi
  while IFS= read -r line; do
    if [[ $line == *[Ee]rror* || $line == *ERROR* ]]; then
      printf '%s\n' "$line" >&2
    fi
  done <<<"$log"
  printf '%s\n' "warning: bsq_jax was not installed into the environment (see above): use it from" \
    "  $REPOSITORY, as python -m bsq_jax in place of bsq-jax" >&2
}
