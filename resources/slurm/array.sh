#!/bin/sh
#SBATCH --job-name=array
#SBATCH --time=10
#SBATCH --array=0-9%4
#SBATCH --output=array-%A-%a.out
#
# Ten machines, four at a time. Each program finds its number in SLURM_ARRAY_TASK_ID:
#
#     sbatch array.sh app.img sh -c './program input.$SLURM_ARRAY_TASK_ID'
exec microvm run "$@"
