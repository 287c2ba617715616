#!/usr/bin/env bash
# Trains on GPU nodes of a Kubernetes cluster that has JobSet: fills in jobset.yaml and applies it.
#
#   bash launch/k8s/submit.sh --name N --image I --nodes N --gpus-per-node G --claim C [OPTION...] \
#     -- ARGUMENT...
#
# The arguments are those of bsq_jax.main. The image holds the repository and its requirements. The
# volume claim C (ReadWriteMany) is mounted at /runs: --workdir must be there. Options, and
# variables:
#   --name N            name of the JobSet
#   --image I           BSQ_IMAGE
#   --nodes N           BSQ_NODES; one pod per node
#   --gpus-per-node G   BSQ_GPUS_PER_NODE
#   --claim C           BSQ_CLAIM
#   --namespace NS      (default: default)
#   --restarts R        maximum number of restarts of all pods, preemptions included (default: 100)
#   --dry-run           print the manifest
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/../common.sh"

name='' image=${BSQ_IMAGE:-} nodes=${BSQ_NODES:-} gpus=${BSQ_GPUS_PER_NODE:-} claim=${BSQ_CLAIM:-}
namespace=default restarts=100
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) take name "$@"; shift 2 ;;
    --image) take image "$@"; shift 2 ;;
    --nodes) take nodes "$@"; shift 2 ;;
    --gpus-per-node) take gpus "$@"; shift 2 ;;
    --claim) take claim "$@"; shift 2 ;;
    --namespace) take namespace "$@"; shift 2 ;;
    --restarts) take restarts "$@"; shift 2 ;;
    --dry-run) DRY_RUN=1; shift ;;
    --help) help_of "$0"; exit ;;
    --) shift; break ;;
    *) mistake "$1 is unknown: write the arguments of bsq_jax.main after --, and see --help" ;;
  esac
done
need "$name" --name
need "$image" --image BSQ_IMAGE
need "$nodes" --nodes BSQ_NODES
need "$gpus" --gpus-per-node BSQ_GPUS_PER_NODE
need "$claim" --claim BSQ_CLAIM
number --nodes "$nodes"
number --gpus-per-node "$gpus"
number --restarts "$restarts"
[[ $# -gt 0 ]] || mistake "there is nothing to run: write the arguments of bsq_jax.main after --"
[[ $name =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]] ||
  mistake "--name $name: it must be a DNS label of small letters, digits and -, 42 at most"

# JSON is valid YAML, so any text can be embedded as JSON. Kubernetes expands $(NAME) in arguments
# unless the dollar sign is doubled.
json() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

# shellcheck disable=SC2016  # kept literally
arguments='' expanded='$(' kept='$$('
for word in "$@"; do
  arguments+="${arguments:+, }$(json "${word//"$expanded"/$kept}")"
done
manifest=''
while IFS= read -r line; do
  [[ $line == "#"* ]] || manifest+=$line$'\n'
done <"$here/jobset.yaml"
fill() {
  manifest=${manifest//"\${$1}"/"$2"}
}
fill NAMESPACE "$(json "$namespace")"
fill NAME "$(json "$name")"
fill IMAGE "$(json "$image")"
fill CLAIM "$(json "$claim")"
fill COORDINATOR "$(json "$name-worker-0-0.$name:8476")"
fill PROCESSES "$(json "$nodes")"
fill NODES "$nodes"
fill GPUS "$gpus"
fill RESTARTS "$restarts"
fill ARGUMENTS "[$arguments]"

if [[ -n $DRY_RUN ]]; then
  printf '%s\n' "$manifest"
  exit
fi
command -v kubectl >/dev/null || mistake "there is no kubectl here: install it first"
printf '%s\n' "$manifest" | kubectl apply -f - ||
  mistake "kubectl refused the manifest: see above (is JobSet installed in the cluster?)"
cat <<TEXT
follow:  kubectl logs -n $(quoted "$namespace") -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
stop:    kubectl delete jobset -n $(quoted "$namespace") $name
TEXT
