"""Scores of given weights, and texts drawn from them."""
