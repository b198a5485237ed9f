#!/bin/bash
# Written by ./launch.sh slurm: search, 20 jobs, each on 1 node with 1 GPU.
# SLURM passes on the environment of the submission (MLFLOW_TRACKING_URI, PGPASSWORD, …). Relative paths begin at the
# folder of the submission. This folder, the images and mlruns must be on a file system that all nodes share.
#
#SBATCH --job-name=first
# Each element of the array is a worker of the study; % limits how many run at once.
#SBATCH --array=0-19%8
# One task per node: it starts the node's processes itself.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=8:00:00
# A job that is preempted, or whose node fails, is queued again. Its output goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mlruns/slurm/first-%A_%a.out
# Before the time limit, SIGUSR1 asks the processes to save and to stop. SLURM may send it a minute early.
#SBATCH --signal=USR1@180

# A preemption sends SIGTERM to everything. The command below stops, saved; this script waits until it has.
trap : TERM

# srun does not take --cpus-per-task over from sbatch.
status=0
srun --cpus-per-task=4 \
  ./launch.sh search \
    --config caltech101-pooled \
    --data.root /shared/data \
    --model.weights /shared/vgg16.safetensors \
    --study first \
    --trials 200 \
    --storage postgresql://me@database/studies \
    --workers 1 || status=$?

# 138 is 128 + SIGUSR1: it stopped for the time limit, so it is queued again and goes on.
if [ "$status" = 138 ]; then
  # Its number alone would be that of the whole array, for one of the elements.
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
