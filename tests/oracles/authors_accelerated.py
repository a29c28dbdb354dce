"""Our transforms for the authors' settings; see `authors.py`."""

METHODS = {}
LAYOUTS = {}
