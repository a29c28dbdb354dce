"""The training loop and what it does beside its updates."""
