"""Small programs beside training: what a run would cost."""
