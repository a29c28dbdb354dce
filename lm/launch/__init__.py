"""Programs that start `lm` on other machines: TPU pods, SLURM, SkyPilot."""
