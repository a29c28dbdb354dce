"""The model sees what is trained."""

from typing import Any

import jax

from ..config.schema import Config


def seen(
  config: Config,
  specs: Any,
  params: Any,
  frozen: Any,
  step: jax.Array,
  key: jax.Array,
  mode: str,
) -> Any:
  """The parameters."""
  del config, specs, frozen, step, key, mode
  return params
