"""Options that all methods with Kronecker factors share."""

import dataclasses
from typing import Any, NamedTuple

from ..common import checks
from .layout import DimensionTree
from .placement import Placement
from .plan import Plan, make_plan

_LEVELS = ("default", "high", "highest")


class Storage(NamedTuple):
  """Types in which a method keeps its state; None is float32.

  The arithmetic is in float32 for all storage types (float64 for float64
  leaves).
  """

  mu: Any | None = None  # Type of the first moments.
  nu: Any | None = None  # Type of the second moments.
  factor: Any | None = None  # Type of the averages of Gram matrices.
  basis: Any | None = None  # Type of the bases or inverse roots.


class Precision(NamedTuple):
  """Precision of three kinds of products: "default", "high" or "highest".

  The three differ on accelerators only, where "default" rounds float32 inputs
  to TF32 or bfloat16. Gram matrices need all digits: rounding destroys their
  smallest eigenvalues first.
  """

  statistics: str = "highest"  # Of Gram matrices.
  rotation: str = "high"  # Of turning gradients and updates.
  refresh: str = "highest"  # Of making bases and roots.


@dataclasses.dataclass(frozen=True, eq=False)
class LayoutOptions:
  """Which sides of which matrices have a factor, and where stacks lie.

  Attributes:
    max_precond_dim: A side longer than this gets no factor; the identity takes
      the factor's place.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no matrix) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. A leaf without an
      entry gets the default: a leaf of two axes is a matrix [inputs, outputs],
      a leaf of fewer axes is no matrix, and a leaf of more axes is an error.
      The argument None gives all leaves the default.
    one_sided: True: only the shorter side of each matrix gets a factor.
    block_size: A side longer than this is cut into blocks, and each block gets
      a factor of its own. None: no side is cut.
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
    b1: Decay of the first moment, in [0, 1).
    b2: Decay of the second moment, in [0, 1).
    shampoo_beta: Decay beta of L and R, in [0, 1); None is b2.
    eps: Added to the square root in Adam's direction.
    precondition_frequency: Calls between two refreshes of a matrix, >= 1.
    stagger: True spreads the refreshes evenly over the calls. False refreshes
      all matrices at once, at every `precondition_frequency`-th call.
    storage: Types of the state; see `Storage`.
    precision: Precision of the products; see `Precision`.
    eps_root: Added inside the square root, in units of the square. Set it > 0
      if the update itself is differentiated.
  """

  b1: float = 0.95
  b2: float = 0.95
  shampoo_beta: float | None = None
  eps: float = 1e-8
  _: dataclasses.KW_ONLY
  precondition_frequency: int = 10
  stagger: bool = True
  storage: Storage = Storage()
  precision: Precision = Precision()
  eps_root: float = 0.0

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    for name in ("b1", "b2", "shampoo_beta"):
      if getattr(self, name) is not None:
        checks.decay(name, getattr(self, name))
    for name in ("eps", "eps_root"):
      checks.positive(name, getattr(self, name), zero_too=True)
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

  @property
  def beta(self) -> float:
    """Decay of L and R."""
    return self.b2 if self.shampoo_beta is None else self.shampoo_beta


def check_placement(placement: Any) -> None:
  """Raises unless `placement` is a `Placement` with a number of devices."""
  checks.instance("placement", placement, Placement)
  checks.count("placement.stack_shards", placement.stack_shards)
