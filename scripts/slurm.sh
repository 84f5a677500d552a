#!/usr/bin/env bash
# One training run as a Slurm job, on any number of nodes:
#
#   sbatch --nodes 4 scripts/slurm.sh --recipe pretrain --deepspeed_config ds_configs/zero1.json \
#       --unlabelled.shards runs/mine/shards --output runs/mine/pretrain
#
# What sbatch is told goes before the script and overrides the lines below; what comes after it is for training. Every
# GPU is one task, started by srun itself: with a launcher in between, signals and exit codes would get lost.
# Ten minutes before the time limit the ranks are asked to save (raise it where saving takes longer); they leave with
# code 75, and the job is queued again and goes on. A failed node requeues it too; any other failure ends it.
# PYTHON names the interpreter; the default is the one of .venv where there is one.

#SBATCH --job-name=mcontriever
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -euo pipefail
readonly SAVED=75

cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}"  # Slurm runs a copy of this file from elsewhere
python=${PYTHON:-.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes%%$'\n'*}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))
export WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}

# Not --kill-on-bad-exit: the first rank to leave with 75 would have the others killed. After any end they get two
# minutes. exec, because a shell would die of the signal in the rank's place.
code=0
srun --kill-on-bad-exit=0 --wait=120 \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' rank \
    "$python" -m mcontriever.train "$@" || code=$?

if ((code == SAVED)); then
    echo "saved; queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
