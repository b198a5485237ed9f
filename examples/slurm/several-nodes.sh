#!/bin/bash
# Written by ./launch.sh slurm: train, on 2 nodes with 8 GPUs each.
# SLURM passes on the environment of the submission (MLFLOW_TRACKING_URI, PGPASSWORD, …). Relative paths begin at the
# folder of the submission. This folder, the images and mlruns must be on a file system that all nodes share.
#
#SBATCH --job-name=caltech101-pooled
# One task per node: it starts the node's processes itself.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=4:00:00
#SBATCH --partition=gpu
# A job that is preempted, or whose node fails, is queued again. Its output goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mlruns/slurm/caltech101-pooled-%j.out
# Before the time limit, SIGUSR1 asks the processes to save and to stop. SLURM may send it a minute early.
#SBATCH --signal=USR1@180
#SBATCH --account=vision

# A preemption sends SIGTERM to everything. The command below stops, saved; this script waits until it has.
trap : TERM

# srun does not take --cpus-per-task over from sbatch.
# It waits for all tasks: one that ends first does not end the others, which may still be saving and notice it
# themselves. A node that is lost is for SLURM to notice, which then queues the job again.
status=0
srun --cpus-per-task=96 --kill-on-bad-exit=0 --wait=0 \
  ./launch.sh train -n 8 \
    --config caltech101-pooled \
    --data.root /shared/data \
    --model.weights /shared/vgg16.safetensors \
    --cache /shared/cache \
    --resume auto || status=$?

# 138 is 128 + SIGUSR1: it stopped for the time limit, so it is queued again and goes on from its last snapshot.
if [ "$status" = 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
