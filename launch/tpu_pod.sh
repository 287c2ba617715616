#!/usr/bin/env bash
# Trains on a TPU VM or a pod slice of Google Cloud, and restarts when it is preempted.
#
#   bash launch/tpu_pod.sh run --name N --zone Z --project P --accelerator-type T \
#     --runtime-version V [OPTION...] -- ARGUMENT...
#   bash launch/tpu_pod.sh status|stop --name N --zone Z --project P
#
# `run` creates the slice, or uses it if it is ready, copies the repository to all workers (tracked
# files, and new ones that git does not ignore), installs the requirements, runs the same command on
# all workers and shows the first worker's log until the run ends. Ctrl-C only stops showing the
# log: the same command shows it again. `stop` lets the run save a checkpoint, and deletes the
# slice.
#
# The arguments are those of bsq_jax.main. Options, and variables that replace them:
#   --name N               BSQ_TPU_NAME
#   --project P            CLOUDSDK_CORE_PROJECT
#   --zone Z               CLOUDSDK_COMPUTE_ZONE
#   --accelerator-type T   BSQ_TPU_TYPE, such as v5p-64
#   --runtime-version V    BSQ_TPU_RUNTIME, the software of the machines, such as v2-alpha-tpuv5
#   --bucket B             BSQ_BUCKET: mounted at ~/bucket on all workers with gcsfuse
#   --spot                 a cheaper slice that may be preempted at any time
#   --restarts R           maximum number of restarts after preemption or a crash (default: 100)
#   --retry-seconds S      seconds between attempts while there is no capacity (default: 60)
#   --tries N              maximum number of such attempts (default: 60)
#   --dry-run              print the commands without running them
#
# The disks of a slice are deleted with it: to survive a preemption, a run needs its --workdir on
# the bucket ("bucket/runs/a", relative to the home folder of the workers).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

POLL=${BSQ_POLL_SECONDS:-10}
name=${BSQ_TPU_NAME:-} project=${CLOUDSDK_CORE_PROJECT:-} zone=${CLOUDSDK_COMPUTE_ZONE:-}
type=${BSQ_TPU_TYPE:-} runtime=${BSQ_TPU_RUNTIME:-} bucket=${BSQ_BUCKET:-}
spot='' restarts=100 wait_seconds=60 tries=60

action=${1:-}
case $action in
  run | status | stop) shift ;;
  --help) help_of "$0"; exit ;;
  *) mistake "'$action' is no command: write run, status or stop, and see --help" ;;
esac
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) take name "$@"; shift 2 ;;
    --project) take project "$@"; shift 2 ;;
    --zone) take zone "$@"; shift 2 ;;
    --accelerator-type) take type "$@"; shift 2 ;;
    --runtime-version) take runtime "$@"; shift 2 ;;
    --bucket) take bucket "$@"; shift 2 ;;
    --spot) spot=1; shift ;;
    --restarts) take restarts "$@"; number "$1" "$restarts"; shift 2 ;;
    --retry-seconds) take wait_seconds "$@"; number "$1" "$wait_seconds"; shift 2 ;;
    --tries) take tries "$@"; number "$1" "$tries"; shift 2 ;;
    --dry-run) DRY_RUN=1; shift ;;
    --help) help_of "$0"; exit ;;
    --) shift; break ;;
    *) mistake "$1 is unknown: write the arguments of bsq_jax.main after --, and see --help" ;;
  esac
done
need "$name" --name BSQ_TPU_NAME
need "$project" --project CLOUDSDK_CORE_PROJECT
need "$zone" --zone CLOUDSDK_COMPUTE_ZONE
if [[ $action == run ]]; then
  need "$type" --accelerator-type BSQ_TPU_TYPE
  need "$runtime" --runtime-version BSQ_TPU_RUNTIME
  [[ $# -gt 0 ]] || mistake "there is nothing to run: write the arguments of bsq_jax.main after --"
fi
[[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
  mistake "there is no gcloud here: install the Google Cloud CLI and log in"

# tpu VERB WORD...: gcloud for this slice.
tpu() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" --project="$project" --zone="$zone"
}

# on WORKER COMMAND: runs a line of shell on a worker, or on `all`.
on() {
  tpu ssh "$name" --worker="$1" --command="$2"
}

# Prints READY, PREEMPTED, ...; NONE if there is no such slice. Any other failure ends the script.
state() {
  local found
  if found=$(tpu describe "$name" '--format=value(state)' 2>&1); then
    printf '%s' "$found"
  elif [[ $found == *NOT_FOUND* || $found == *"not found"* ]]; then
    printf NONE
  else
    mistake "gcloud cannot say how $name is: $(last_line "$found")"
  fi
}

last_line() {
  printf '%s' "$1" | tr -s '\n' ' ' | tail -c 300
}

create() {
  local try said
  if [[ -n $DRY_RUN ]]; then
    tpu create "$name" --accelerator-type="$type" --version="$runtime" ${spot:+--spot}
    return
  fi
  for ((try = 1; ; try++)); do
    echo "making $name ($type) ..." >&2
    if said=$(tpu create "$name" --accelerator-type="$type" --version="$runtime" \
      ${spot:+--spot} 2>&1); then
      return
    fi
    case $said in
      *[Qq]uota*)
        mistake "the project has no quota for this slice: ask for more at" \
          "https://console.cloud.google.com/iam-admin/quotas, or take another --zone or" \
          "--accelerator-type ($(last_line "$said"))"
        ;;
      *"no more capacity"* | *"not enough resources"* | *RESOURCE_EXHAUSTED* | *UNAVAILABLE*)
        ((try < tries)) || mistake "there was no capacity for $type in $zone in $tries tries"
        echo "no capacity for $type in $zone: again in $wait_seconds s" >&2
        sleep "$wait_seconds"
        ;;
      *) mistake "gcloud could not make $name: $(last_line "$said")" ;;
    esac
  done
}

delete() {
  tpu delete "$name" --quiet
}

# Creates an environment on a worker. Most TPU machines come with a Python that is too old.
# shellcheck disable=SC2016  # the workers expand it
readonly ENVIRONMENT='[ -x venv/bin/python ] || { for python in python3.13 python3.12 python3.11 python3; do if "$python" -c "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then "$python" -m venv venv; break; fi; done; [ -x venv/bin/python ]; } || { python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 venv; }'

# Prints a Python of this machine; packing needs no packages.
any_python() {
  local candidate
  for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$here/../.venv/bin/python" python3 python; do
    if [[ -n $candidate ]] && "$candidate" -c '' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  mistake "there is no Python here to pack the repository with: install one"
}

# Installs the repository and its environment on all workers. The bucket is mounted next to it and
# linked into it, because the folder of the repository is removed before it is copied again.
prepare() {
  local folder
  folder=$(mktemp -d)
  if [[ -z $DRY_RUN ]]; then
    "$(any_python)" "$here/pack.py" "$folder/bsq_jax.tar.gz" || return
  fi
  tpu scp "$folder/bsq_jax.tar.gz" "$name:bsq_jax.tar.gz" --worker=all || return
  rm -rf "$folder"
  on all 'rm -rf bsq_jax && mkdir bsq_jax && python3 -m tarfile -e bsq_jax.tar.gz bsq_jax' || return
  on all "{ $ENVIRONMENT; } && venv/bin/python -m pip install --quiet --requirement bsq_jax/requirements.txt 'jax[tpu]'" || return
  if [[ -n $bucket ]]; then
    on all "mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $(quoted "${bucket#gs://}") bucket; } && ln -s ../bucket bsq_jax/bucket" || return
  fi
}

# Starts the command on all workers in the background. Its exit status is written to run.status.
start() {
  local line cache=''
  # The compilation cache is on the bucket if there is one.
  # shellcheck disable=SC2016  # the workers expand it
  [[ -z $bucket ]] || cache='JAX_COMPILATION_CACHE_DIR=$HOME/bucket/compiled '
  line="cd bsq_jax && $cache../venv/bin/python -m bsq_jax.main $(quoted "$@"); echo \$? > ../run.status"
  on all "rm -f run.status; setsid nohup bash -c $(quoted "$line") > run.log 2>&1 < /dev/null & echo \$! > run.pid"
}

# shellcheck disable=SC2016  # the workers expand it
readonly GOING='[ ! -f run.status ] && [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null'

# Shows the first worker's log until the run ends and returns its status; 255 if ssh fails.
follow() {
  on 0 "tail -n +1 -F run.log & shown=\$!; while $GOING; do sleep 2; done; sleep 1; kill \$shown; exit \$(cat run.status 2>/dev/null || echo 1)"
}

run_to_the_end() {
  local status found again
  for ((again = 0; ; again++)); do
    while true; do
      found=$(state) || exit
      [[ $found == CREATING ]] || break
      sleep "$POLL"
    done
    if [[ $found != READY ]]; then
      [[ $found == NONE ]] || delete
      create
    fi
    if [[ $found == READY ]] && on 0 "$GOING" 2>/dev/null; then
      echo "the run on $name is still going" >&2
    elif ! { prepare && start "$@"; } && [[ $(state) == READY ]]; then
      mistake "the workers of $name could not be prepared: see above"
    fi
    status=0
    follow || status=$?
    while ((status == 255)) && [[ $(state) == READY ]]; do  # only the connection was lost
      sleep "$POLL"
      status=0
      follow || status=$?
    done
    if ((status == 0)); then
      echo "done: bash launch/tpu_pod.sh stop deletes the slice" >&2
      return 0
    elif ((status == MISTAKE || status == INTERRUPTED)); then
      return "$status"
    elif ((again >= restarts)); then
      printf 'error: ended with status %d, and ran again %d times already\n' "$status" "$restarts" >&2
      return "$status"
    fi
    echo "ended with status $status, $name is $(state): running again" >&2
  done
}

case $action in
  status)
    if [[ -n $DRY_RUN ]]; then
      tpu describe "$name" '--format=value(state)'
    else
      printf '%s: %s\n' "$name" "$(state)"
    fi
    ;;
  stop)
    # shellcheck disable=SC2016  # the workers expand it
    on all 'if pkill -TERM -f "[b]sq_jax.main"; then for _ in $(seq 150); do [ -f run.status ] && break; sleep 2; done; fi' ||
      echo "the workers cannot be reached: deleting without saving" >&2
    delete
    ;;
  run)
    if [[ -n $DRY_RUN ]]; then
      tpu describe "$name" '--format=value(state)'
      create
      prepare
      start "$@"
      follow
    else
      run_to_the_end "$@"
    fi
    ;;
esac
