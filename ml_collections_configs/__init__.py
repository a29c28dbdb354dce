"""Configurations: `base.py` declares every key, the rest are experiments."""
