"""Checks, trees, labels and points to evaluate: what every room uses."""
