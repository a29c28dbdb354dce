"""What methods with Kronecker factors have in common to be told."""

import dataclasses
from typing import Any, NamedTuple

from ..common import checks
from .layout import DimensionTree
from .placement import Placement
from .plan import Plan, make_plan

_LEVELS = ("default", "high", "highest")


class Storage(NamedTuple):
  """Types in which a method keeps its state; None is float32.

  Arithmetic is in float32 whatever is kept (float64 for float64 leaves).
  """

  mu: Any | None = None  # First moments.
  nu: Any | None = None  # Second moments.
  factor: Any | None = None  # Averages of Gram matrices.
  basis: Any | None = None  # What is made from them: bases, inverse roots.


class Precision(NamedTuple):
  """Of the three kinds of matrix products: "default", "high", "highest".

  They differ on accelerators only, where "default" rounds float32 inputs to
  TF32 or bfloat16. Gram matrices need all the digits: their smallest
  eigenvalues are what rounding destroys first.
  """

  statistics: str = "highest"
  rotation: str = "high"
  refresh: str = "highest"


@dataclasses.dataclass(frozen=True, eq=False)
class LayoutOptions:
  """Which sides of which matrices have a factor, and where stacks lie.

  Attributes:
    max_precond_dim: Sides longer than this get no factor: identity there.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no matrix) like params or a prefix of it, or a
      function of params, e.g. `by_rank`. Leaves that it leaves out, or all for
      None: those of two axes are matrices [inputs, outputs], those of fewer are
      none, and those of more are refused.
    one_sided: Only the shorter side of each matrix gets a factor.
    block_size: Sides longer than this are cut into blocks of their own.
    placement: Where the stacks lie on a mesh; see `Placement`.
  """

  _: dataclasses.KW_ONLY
  max_precond_dim: int = 10_000
  dimension_numbers: DimensionTree = None
  one_sided: bool = False
  block_size: int | None = None
  placement: Placement = Placement()

  def __post_init__(self):
    """Raises for any argument out of range."""
    checks.count("max_precond_dim", self.max_precond_dim)
    if self.block_size is not None:
      checks.count("block_size", self.block_size)
    check_placement(self.placement)

  def plan(self, tree: Any) -> Plan:
    """`make_plan` with these options."""
    return make_plan(
      tree,
      self.dimension_numbers,
      max_precond_dim=self.max_precond_dim,
      one_sided=self.one_sided,
      block_size=self.block_size,
      stack_shards=self.placement.stack_shards,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixOptions(LayoutOptions):
  """Options of a method that keeps factors of matrices and refreshes them.

  Attributes:
    precondition_frequency: Calls between two refreshes of a matrix, >= 1.
    stagger: Spread the refreshes evenly over the calls; False does all of
      them at once, every `precondition_frequency`-th call.
    storage: Types of the state; see `Storage`.
    precision: Of the products for statistics, rotation and refresh; see
      `Precision`.
  """

  _: dataclasses.KW_ONLY
  precondition_frequency: int = 10
  stagger: bool = True
  storage: Storage = Storage()
  precision: Precision = Precision()

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    checks.count("precondition_frequency", self.precondition_frequency)
    checks.instance("storage", self.storage, Storage)
    known = all(level in _LEVELS for level in self.precision)
    if len(tuple(self.precision)) != 3 or not known:
      raise ValueError(
        f"precision={self.precision!r} must be three of {', '.join(_LEVELS)}: "
        "for statistics, rotation and refresh, e.g. ('highest', 'high', "
        "'highest')."
      )
    object.__setattr__(self, "precision", Precision(*self.precision))


def check_placement(placement: Any) -> None:
  """Raises unless it is a `Placement` with a number of devices."""
  checks.instance("placement", placement, Placement)
  checks.count("placement.stack_shards", placement.stack_shards)
