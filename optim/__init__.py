"""Optimiser transforms and curvature for JAX, composable with optax."""
