"""A Slurm cluster as a platform, by the commands sbatch, squeue, scontrol, scancel and sinfo."""
