"""Train a sharded language model on real text; see `lm/main.py`.

Needs the packages of the extra `lm`.
"""

import importlib.util
import sys

_NEEDS = ("absl", "flax", "grain", "ml_collections", "orbax", "sentencepiece")
_missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
if _missing:
  _message = (
    f"lm needs {', '.join(_missing)}: install the extra, "
    "pip install 'goldenpath[lm]' (from a checkout: pip install -e '.[lm]')."
  )
  if sys.argv[0] == "-m":  # python -m lm.main: one line, and no traceback.
    sys.exit(_message)
  raise ModuleNotFoundError(_message)
