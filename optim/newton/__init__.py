"""Gauss-Newton: local models of the loss, solved on fresh batches."""
