#!/usr/bin/env bash
# Trains with several processes on this machine.
#
#   bash launch/local.sh [OPTION...] -- ARGUMENT...
#
# The arguments are those of bsq_jax.main. Options:
#   --processes N          number of processes (default: 2)
#   --gpus-per-process G   process I sees the GPUs I*G to I*G+G-1
#   --cpu-devices D        virtual CPU devices of each process
#   --restarts R           maximum number of restarts after a failure (default: 3)
#   --patience S           seconds in which the others must end after one has failed (default: 60)
#   --port P               of process 0 (default: a free one)
#   --dry-run              print the commands without running them
#
# The output of process 0 is shown unchanged, that of the others with their number as a prefix.
# SIGTERM is forwarded to all processes: they save a checkpoint and end with status 75. So is Ctrl-C:
# they save and end with status 130, and at a second one leave at once.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 gpus='' cpus='' restarts=3 patience=60 port=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes) take processes "$@"; number "$1" "$processes"; shift 2 ;;
    --gpus-per-process) take gpus "$@"; number "$1" "$gpus"; shift 2 ;;
    --cpu-devices) take cpus "$@"; number "$1" "$cpus"; shift 2 ;;
    --restarts) take restarts "$@"; number "$1" "$restarts"; shift 2 ;;
    --patience) take patience "$@"; number "$1" "$patience"; shift 2 ;;
    --port) take port "$@"; number "$1" "$port"; shift 2 ;;
    --dry-run) DRY_RUN=1; shift ;;
    --help) help_of "$0"; exit ;;
    --) shift; break ;;
    *) mistake "$1 is unknown: write the arguments of bsq_jax.main after --, and see --help" ;;
  esac
done
[[ $# -gt 0 ]] || mistake "there is nothing to run: write the arguments of bsq_jax.main after --"
((processes > 0)) || mistake "--processes $processes: it must be 1 or more"
[[ -z $gpus || -z $cpus ]] || mistake "--gpus-per-process and --cpu-devices exclude each other"

if [[ -n $DRY_RUN ]]; then
  VENV_PYTHON=${VIRTUAL_ENV:-$REPOSITORY/.venv}/bin/python
else
  prepare_environment requirements.txt
fi

pids=() stopping=''

# Prints a free port.
free_port() {
  "$VENV_PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Sets `command` to the command of process $1; the rest are its arguments.
command_of() {
  local index=$1 devices word
  shift
  command=(env "GLIBC_TUNABLES=$GLIBC_TUNABLES")
  if [[ -n $gpus ]]; then
    devices=$(seq -s , $((index * gpus)) $((index * gpus + gpus - 1)))
    command+=("CUDA_VISIBLE_DEVICES=$devices")
  elif [[ -n $cpus ]]; then
    word="--xla_force_host_platform_device_count=$cpus"
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$word")
  fi
  command+=("$VENV_PYTHON" -m bsq_jax.main "$@")
  if ((processes > 1)); then
    command+=(--coordinator "localhost:$attempt_port" --processes "$processes" --process "$index")
  fi
}

# shellcheck disable=SC2317  # called by the trap
stop() {
  stopping=1
  tell "$1"
}

# Copies the output of process $1 until it ends, whatever stops this script.
show() {
  trap '' INT TERM HUP
  labelled "[$1] "
}

tell() {
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}

# Runs all processes once; sets `status` to the worst of theirs, where a user error ranks first.
attempt() {
  local index pid code deadline='' killing=''
  local -A left=()
  pids=() status=0
  for ((index = 0; index < processes; index++)); do
    command_of "$index" "$@"
    # A terminal sends Ctrl-C to its foreground only, which these processes leave by job control;
    # without it they would ignore it. They get it from the trap, once.
    set -m
    if ((index)); then
      "${command[@]}" > >(show "$index") 2> >(show "$index" >&2) &
    else
      "${command[@]}" &
    fi
    pids+=($!)
    set +m
    left[$!]=1
  done
  while ((${#left[@]})); do
    for pid in "${!left[@]}"; do
      kill -0 "$pid" 2>/dev/null && continue
      code=0
      wait "$pid" || code=$?
      unset "left[$pid]"
      if ((code)); then
        ((code == MISTAKE || status == 0)) && status=$code
        deadline=${deadline:-$((SECONDS + patience))}
      fi
    done
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      tell "$([[ -n $killing ]] && echo KILL || echo TERM)"
      killing=1 deadline=$((SECONDS + patience))
    fi
    sleep 0.1 || true
  done
}

if [[ -n $DRY_RUN ]]; then
  attempt_port=${port:-PORT}
  for ((index = 0; index < processes; index++)); do
    command_of "$index" "$@"
    run "${command[@]}"
  done
  exit
fi
trap 'stop TERM' TERM HUP
trap 'stop INT' INT
for ((try = 0; ; try++)); do
  attempt_port=${port:-$(free_port)}
  attempt "$@"
  if ((status == 0 || status == MISTAKE || status == INTERRUPTED)) || [[ -n $stopping ]]; then
    exit "$status"
  elif ((try >= restarts)); then
    printf 'error: ended with status %d, and ran again %d times already\n' "$status" "$restarts" >&2
    exit "$status"
  fi
  printf 'ended with status %d: running again (%d of %d)\n' "$status" $((try + 1)) "$restarts" >&2
done
