#!/bin/bash
# Written by ./launch.sh slurm: train, on 1 node with 4 GPUs.
# SLURM passes on the environment of the submission (MLFLOW_TRACKING_URI, PGPASSWORD, …). Relative paths begin at the
# folder of the submission. This folder, the images and mlruns must be on a file system that all nodes share.
#
#SBATCH --job-name=caltech101-pooled
# One task per node: it starts the node's processes itself.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=2:00:00
# A job that is preempted, or whose node fails, is queued again. Its output goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mlruns/slurm/caltech101-pooled-%j.out
# Before the time limit, SIGUSR1 asks the processes to save and to stop. SLURM may send it a minute early.
#SBATCH --signal=USR1@180

# A preemption sends SIGTERM to everything. The command below stops, saved; this script waits until it has.
trap : TERM

# srun does not take --cpus-per-task over from sbatch.
status=0
srun --cpus-per-task=16 \
  ./launch.sh train -n 4 \
    --config caltech101-pooled \
    --data.root /shared/data \
    --model.weights /shared/vgg16.safetensors \
    --resume auto || status=$?

# 138 is 128 + SIGUSR1: it stopped for the time limit, so it is queued again and goes on from its last snapshot.
if [ "$status" = 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
