"""Optimisers, one file each; none imports another."""
