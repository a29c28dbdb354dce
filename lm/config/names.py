"""Names that a configuration may use, and the nearest one to a typo."""

import difflib
from collections.abc import Iterable

# Corpora that have a name of their own (`lm/data/corpora.py`).
CORPORA = ("sotu", "wiki", "awsdocs", "legal", "gcide", "stdlib", "c4")
CORPUS_PREFIXES = ("dir:", "tfds:")  # Before a path.
# What `config.model.remat` may save of a block: the model's `checkpoint_name`s.
SAVED = ("q", "k", "v", "attention", "mlp_in", "mlp_gate")


def nearest(name: str, allowed: Iterable[str]) -> str:
  """A hint at the allowed name closest to `name`; empty without one."""
  close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
  return f" Did you mean {close[0]!r}?" if close else ""
