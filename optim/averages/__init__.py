"""Averages of weights: points to evaluate that are not the parameters."""
