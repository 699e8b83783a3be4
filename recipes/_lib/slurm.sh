#!/usr/bin/env bash
# `speechssl train` on several machines under SLURM: one torchrun a machine, one process a GPU.
# From the root of the repository:
#   sbatch --nodes 4 --gpus-per-node 8 recipes/_lib/slurm.sh \
#     --config recipes/librispeech/conf/pretrain.yaml --data.train TRAIN.jsonl --run.out DIR
# DIR must be on storage that all machines see. Send it again after a time limit: it resumes.
# After the signal below, torchrun gives its processes 30 s to finish an update and save. Where that
# is too short, run.save_every_steps decides what is lost; or `srun python -m speechssl train` with
# one task a GPU, which has all the time until the limit (README, "Many GPUs, many machines").
#SBATCH --job-name=speechssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --output=speechssl-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#SBATCH --requeue
set -euo pipefail
# SLURM runs a copy of this file, so the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
source recipes/_lib/setup.sh

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-8}
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one machine do not meet
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))
((OMP_NUM_THREADS > 0)) || OMP_NUM_THREADS=1

# With --kill-on-bad-exit a machine that fails ends the job, instead of leaving the others waiting.
# srun does not take --cpus-per-task over from sbatch by itself.
exec srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
  --nnodes "$SLURM_NNODES" --nproc_per_node "$gpus" \
  --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head_node:$port" \
  -m speechssl train "$@"
