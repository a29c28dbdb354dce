"""The training state and one update of it."""
