"""Training: data, losses, schedules, the loop, checkpoints, several processes, the run folder."""
