#!/bin/bash
# A study as a Slurm job: Ray on all nodes of the job, the study on the first.
#
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh /shared/study.yaml /shared/runs/first --generators 31 --device cuda
#
# The arguments are the study file, the folder of the results, and options of `lotts-search study`. Both paths are on a file system
# that all nodes see, and `lotts-search` and `ray` are on the PATH of all nodes: activate the environment before sbatch. A verifier on a
# GPU takes the place of one generator.
#
# Before its time is up, the job stops the study and puts itself into the queue again. It resumes there, and after the loss of a node.
#SBATCH --job-name=lotts-search
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

study=${1:?the study file}
out=${2:?the folder of the results}
shift 2

margin=300 # seconds that the study has to stop, and Ray after it
left=$((SLURM_JOB_END_TIME - $(date +%s) - margin))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))

# Ray listens on the network of the nodes: nobody but this job has the token.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds in which all nodes must have come; 30 by default

started=$(mktemp)
code=0
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats -- \
    timeout --signal=TERM --kill-after="$((margin / 2))" "$left" \
    lotts-search study "$study" --out "$out" --address "$address:$port" "$@" || code=$?

if [ "$code" -eq 124 ]; then # the time was up
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$code" -eq 0 ] && ! [ "$out/study.json" -nt "$started" ]; then # symmetric-run does not say so
    echo "Ray did not start, or the study did not run" >&2
    code=1
fi
exit "$code"
