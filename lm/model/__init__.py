"""The decoder: its parameters, layers, attention and mesh."""
