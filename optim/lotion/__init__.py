"""LOTION: training for weights that will be rounded."""
