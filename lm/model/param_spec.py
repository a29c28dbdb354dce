"""Facts about one parameter; every part of the model states its own.

A part's `specs` is a nested dict of `ParamSpec`; `params.py` puts the parts
together. Letters: see `params.py`.
"""

import dataclasses
import math
from typing import Any

from ..config.schema import ModelConfig

# A nested dict, with ParamSpec leaves or with arrays.
Tree = Any


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """Facts about one parameter.

  Attributes:
    shape: Of the array, with the leading N when the layers are stacked.
    axes: Logical name of each axis, a key of `lm/model/mesh.py`'s `RULES`.
    role: input (looked up) | hidden | output (makes logits) | gain | bias.
    fan_in: Axes that the product with this parameter sums over.
    init_std: Standard deviation of the normal before truncation; one number,
      or N of them when the layers are stacked. Gains start at one and biases
      at zero, so theirs is 0.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  role: str
  fan_in: tuple[int, ...] = ()
  init_std: float | tuple[float, ...] = 0.0

  @property
  def size(self) -> int:
    """Number of entries."""
    return math.prod(self.shape)


def init_std(
  cfg: ModelConfig, fan_in: int, writes_in_layer: int | None = None
) -> float:
  """Initial standard deviation of a matrix that sums over `fan_in` entries.

  The schemes shrink the matrices that write to the residual stream, so that
  the stream does not grow with depth:

      mitchell  1 / sqrt(fan_in), writers / sqrt(2 (layer + 1))   (OLMo)
      fan_in    1 / sqrt(fan_in)
      megatron  init_std,         writers / sqrt(2 N)

  Args:
    cfg: Names the scheme.
    fan_in: Number of entries.
    writes_in_layer: Layer of a matrix that writes to the stream; None for the
      others.

  Raises:
    ValueError: For an unknown scheme.
  """
  writes = writes_in_layer is not None
  if cfg.init == "mitchell":
    return (fan_in * (2 * (writes_in_layer + 1) if writes else 1)) ** -0.5
  if cfg.init == "fan_in":
    return fan_in**-0.5
  if cfg.init == "megatron":
    return cfg.init_std * ((2 * cfg.N) ** -0.5 if writes else 1.0)
  raise ValueError(
    f"config.model.init={cfg.init!r} is not a scheme; use mitchell, fan_in or "
    "megatron."
  )


def gain_and_bias(
  shape: tuple[int, ...], axes: tuple[str, ...], bias: bool
) -> Tree:
  """The parameters of a norm: a gain and, if asked, a bias."""
  specs = {"gain": ParamSpec(shape, axes, "gain")}
  if bias:
    specs["bias"] = ParamSpec(shape, axes, "bias")
  return specs
