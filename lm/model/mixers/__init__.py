"""Mixers: what a layer does across the tokens of a row."""
