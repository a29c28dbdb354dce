"""State, step, loop, checkpoints, metrics and writers."""
