# shellcheck shell=bash
# Shared by the scripts that start runs on one or many machines, which source it.

# Exit statuses of bsq_jax.main (docs/launch.md).
readonly MISTAKE=2
# shellcheck disable=SC2034  # for the scripts that source this
readonly RUN_AGAIN=75
# shellcheck disable=SC2034
readonly INTERRUPTED=130  # by Ctrl-C: whoever pressed it wants no restart
DRY_RUN=

# Prints a user error in one line and exits with that status.
mistake() {
  printf 'error: %s\n' "$*" >&2
  exit "$MISTAKE"
}

# Prints the comment at the head of a script.
help_of() {
  local line
  {
    read -r line  # the name of the shell
    while read -r line && [[ $line == "#"* ]]; do
      line=${line#"#"}
      printf '%s\n' "${line# }"
    done
  } <"$1"
}

# labelled TEXT: copies the lines of the input, each prefixed with TEXT.
labelled() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s%s\n' "$1" "$line"
  done
}

# Prints words quoted for a shell.
quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Runs a command, or prints it with --dry-run.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# need VALUE FLAG [VARIABLE]: an error that names FLAG if VALUE is empty.
need() {
  [[ -n $1 ]] || mistake "$2 is missing: give $2 VALUE${3:+, or set $3}"
}

# take VARIABLE FLAG [VALUE]: sets VARIABLE to the value of FLAG; an error if there is none.
take() {
  [[ $# -gt 2 && -n $3 ]] || mistake "$2 has no value: see --help"
  printf -v "$1" '%s' "$3"
}

# number FLAG TEXT: an error unless TEXT is a whole number.
number() {
  [[ $2 =~ ^[0-9]+$ ]] || mistake "$1 $2: it must be a whole number"
}
