"""Train a sharded language model on real text; see `lm/main.py`."""
