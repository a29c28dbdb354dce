"""An entry of one of the model's tables, chosen by name, with its own keys.

`config.model.SEAM` names the entry of the table, `config.model.SEAM_kwargs`
sets the keys that the entry declares. An entry with `options` gets an instance
of them as the keyword `options`, in every function but `problems`.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ..config import options
from ..config.errors import ConfigError
from ..config.schema import ModelConfig


def chosen(seam: str, cfg: ModelConfig, table: Mapping[str, Any]) -> Any:
  """The entry of a table that `cfg` names.

  Args:
    seam: ffn | mixer | product.
    cfg: Model section of the configuration.
    table: Of the seam.

  Returns:
    The entry; its functions know its options.

  Raises:
    ConfigError: If the table has no entry of this name.
  """
  name, kwargs = getattr(cfg, seam), getattr(cfg, f"{seam}_kwargs")
  for problem in options.unknown(name, table, f"config.model.{seam}"):
    raise ConfigError(problem)
  entry = table[name]
  if entry.options is None:
    return entry
  own = options.read(entry.options, kwargs)
  functions = set(entry._fields) - {"problems", "options"}
  return entry._replace(
    **{f: functools.partial(getattr(entry, f), options=own) for f in functions}
  )
