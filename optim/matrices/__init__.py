"""Leaves as stacks of matrices: layout, factors, bases, places on a mesh."""
