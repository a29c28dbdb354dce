"""Declarations of studies, for `python -m lm.study`."""
