"""Exact dynamics of SGD on linear regression, in closed form."""
