#!/bin/sh
#SBATCH --job-name=mpi
#SBATCH --time=30
#SBATCH --nodes=1
#SBATCH --ntasks=4
#
# Four ranks of a program in one machine, which share memory in it:
#
#     sbatch mpi.sh app.img ./solver input.dat
#
# Say `--mpi=pmix` for a program of Open MPI. With `mpirun` instead of `srun` it is
# `mpirun -np "$SLURM_NTASKS" microvm run "$@"`.
exec srun --mpi="${MPI:-pmi2}" microvm run "$@"
