"""Several processes as one program, and the signals that stop it."""
