#!/usr/bin/env bash
# Trains on the GPU nodes of a Slurm cluster, and restarts after preemption and time limits.
#
#   bash launch/slurm.sh --partition P --nodes N --gpus-per-node G [OPTION...] -- ARGUMENT...
#
# The arguments are those of bsq_jax.main; the repository, its environment (.venv, or the active
# one) and the workdir must be on shared storage. Options, and variables that replace them:
#   --partition P            BSQ_PARTITION
#   --nodes N                BSQ_NODES
#   --gpus-per-node G        BSQ_GPUS_PER_NODE
#   --process-per node|gpu   one process for the GPUs of a node, or one for each (default: gpu)
#   --time T                 time limit of one job in Slurm's format (default: the partition's)
#   --account A              BSQ_ACCOUNT, where the cluster requires one
#   --log-dir D              folder of the logs (default: logs)
#   --restarts R             maximum number of restarts after a crash (default: 3)
#   --sbatch-option=OPTION   a further option of sbatch; may be repeated
#   --dry-run                print the commands without running them
#
# Two minutes before the limit, and on preemption, the processes receive SIGTERM, save and end with
# status 75, and the job is queued again; this does not count as a crash.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Inside the job: runs one job step on all nodes, and queues the job again where a restart can help.
# Slurm's own restart count includes preemptions, so crashes are counted in a file next to the log.
inside() {
  local python=$1 crashes=$2 restarts=$3 status=0
  shift 3
  cd "$REPOSITORY"
  trap : TERM  # preemption may signal this script too, which must outlive its processes
  run srun --kill-on-bad-exit=1 "$python" -m bsq_jax.main "$@" || status=$?
  if ((status == RUN_AGAIN)); then
    echo "stopped with everything saved: queued again" >&2
    run scontrol requeue "$SLURM_JOB_ID"
  elif ((status != 0 && status != MISTAKE && status != INTERRUPTED)); then
    crashes=$crashes/bsq_jax-$SLURM_JOB_ID.crashes
    echo "$status" >>"$crashes"
    if (($(wc -l <"$crashes") <= restarts)); then
      echo "ended with status $status: queued again" >&2
      run scontrol requeue "$SLURM_JOB_ID"
    else
      echo "error: ended with status $status, and ran again $restarts times already" >&2
    fi
  fi
  exit "$status"
}

if [[ ${1:-} == --inside ]]; then
  shift
  inside "$@"
fi

partition=${BSQ_PARTITION:-} nodes=${BSQ_NODES:-} gpus=${BSQ_GPUS_PER_NODE:-}
account=${BSQ_ACCOUNT:-} process_per=gpu limit='' logs=logs restarts=3 options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --partition) take partition "$@"; shift 2 ;;
    --nodes) take nodes "$@"; shift 2 ;;
    --gpus-per-node) take gpus "$@"; shift 2 ;;
    --process-per) take process_per "$@"; shift 2 ;;
    --time) take limit "$@"; shift 2 ;;
    --account) take account "$@"; shift 2 ;;
    --log-dir) take logs "$@"; shift 2 ;;
    --restarts) take restarts "$@"; number "$1" "$restarts"; shift 2 ;;
    --sbatch-option=*) options+=("${1#*=}"); shift ;;
    --dry-run) DRY_RUN=1; shift ;;
    --help) help_of "$0"; exit ;;
    --) shift; break ;;
    *) mistake "$1 is unknown: write the arguments of bsq_jax.main after --, and see --help" ;;
  esac
done
need "$partition" --partition BSQ_PARTITION
need "$nodes" --nodes BSQ_NODES
need "$gpus" --gpus-per-node BSQ_GPUS_PER_NODE
number --nodes "$nodes"
number --gpus-per-node "$gpus"
[[ $# -gt 0 ]] || mistake "there is nothing to run: write the arguments of bsq_jax.main after --"
case $process_per in
  gpu) tasks=$gpus visible=() ;;
  # By default JAX uses one GPU per Slurm task.
  node) tasks=1 visible=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))") ;;
  *) mistake "--process-per $process_per: it must be node or gpu" ;;
esac

if [[ -n $DRY_RUN ]]; then
  VENV_PYTHON=${VIRTUAL_ENV:-$REPOSITORY/.venv}/bin/python
else
  command -v sbatch >/dev/null || mistake "there is no sbatch here: run this on a login node"
  prepare_environment requirements.txt
fi
[[ $logs == /* ]] || logs=$PWD/$logs
run mkdir -p "$logs"
job=("${visible[@]}" bash "$REPOSITORY/launch/slurm.sh" --inside "$VENV_PYTHON" "$logs" "$restarts" "$@")
run sbatch --job-name=bsq_jax --partition="$partition" --nodes="$nodes" \
  --gpus-per-node="$gpus" --ntasks-per-node="$tasks" ${limit:+--time="$limit"} \
  ${account:+--account="$account"} --requeue --signal=TERM@120 --open-mode=append \
  --output="$logs/%x-%j.log" "${options[@]}" --wrap="$(quoted "${job[@]}")"
