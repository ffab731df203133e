#!/bin/sh
#SBATCH --job-name=serial
#SBATCH --time=10
#SBATCH --cpus-per-task=2
#SBATCH --mem=1G
#SBATCH --signal=TERM@60
#
# A program in a machine of its own. It gets the processors and the memory of the job,
# and SIGTERM a minute before its time is up:
#
#     sbatch serial.sh app.img ./program argument...
#
# `exec` makes microvm the batch script's own process, so that all that Slurm sends to
# the script reaches the program.
exec microvm run "$@"
