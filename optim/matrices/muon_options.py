"""Options of Muon and of NorMuon."""

import dataclasses
from typing import Any, Literal, get_args

from ..common import checks
from .layout import DimensionTree
from .newton_schulz import KELLER, Coefficients, NormName, triples_of
from .options import check_placement
from .placement import Placement
from .plan import Plan, check_two_sides, make_plan
from .variance import Variance


@dataclasses.dataclass(frozen=True, eq=False)
class MuonOptions:
  """Options of `scale_by_muon`.

  Attributes:
    beta: Decay b of the momentum, in [0, 1).
    nesterov: True orthogonalises N, which looks one step ahead; False M.
    adam_b1: Decay of the first moment of Adam, for leaves that are no matrices.
    adam_b2: Decay of the second moment of Adam, for leaves that are no
      matrices.
    adam_eps: eps of Adam, added to the square root.
    adam_eps_root: eps_root of Adam, added inside the square root. Set it > 0 if
      the update itself is differentiated.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no matrix) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. A leaf without an
      entry gets the default: a leaf of two axes is a matrix [inputs, outputs],
      a leaf of fewer axes is no matrix, and a leaf of more axes is an error.
      The argument None gives all leaves the default.
    ns_coeffs: a, b, c of the iteration X <- a X + (b A + c A^2) X, A = X X^T; a
      list of such triples, one a step; or a name: "keller" (the default),
      "quintic", "polar_express", "dion", "cans", "cubic5", "deepseekv4" or
      "record" (`matrices/newton_schulz.py`).
    ns_steps: Iterations, >= 1. None: the length of the list; 5 for one triple.
    ns_norm: The norm that the iteration divides by at first: "frobenius", or
      "schatten4", which is nearer to the largest singular value.
    ns_eps: Added to the norm, in units of N; >= 1e-15 in float32.
    ns_dtype: Type of the products of the iteration; None is float32.
    variance: A second moment of the orthogonal matrix O, an average v with
      decay `b2`, by which O is divided. "rows" (NorMuon): the mean of O^2 over
      the inputs, one number for each output. "longer": one number for each
      index of the longer side. "entries" (AdaMuon): O^2. "matrix" (NAMO): v
      averages ||G||^2, and O is multiplied by ||N||. After "rows" and "longer",
      O gets its old norm back.
    b2: Decay of v, in [0, 1).
    eps: Added to sqrt(v); with "longer" the least v.
    scale: "shape" multiplies by sqrt(max(1, O / I)), "unit" by sqrt(O / I).
    consistent_rms: A number r replaces the scale by r sqrt(max(I, O)). The
      updates then have a root mean square of about r; 0.2 is Adam's.
    mu_dtype: Type of the momentum; None is float32.
    placement: Where the stacks lie on a mesh; see `Placement`.
  """

  beta: float = 0.95
  _: dataclasses.KW_ONLY
  nesterov: bool = True
  adam_b1: float = 0.9
  adam_b2: float = 0.95
  adam_eps: float = 1e-10
  adam_eps_root: float = 0.0
  dimension_numbers: DimensionTree = None
  ns_coeffs: Coefficients = KELLER
  ns_steps: int | None = None
  ns_norm: NormName = "frobenius"
  ns_eps: float = 1e-7
  ns_dtype: Any | None = None
  variance: Variance = "none"
  b2: float = 0.95
  eps: float = 1e-8
  scale: Literal["shape", "unit"] = "shape"
  consistent_rms: float | None = None
  mu_dtype: Any | None = None
  placement: Placement = Placement()

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("beta", "adam_b1", "adam_b2", "b2"):
      checks.decay(name, getattr(self, name))
    for name in ("adam_eps", "adam_eps_root", "eps"):
      checks.positive(name, getattr(self, name), zero_too=True)
    checks.positive("ns_eps", self.ns_eps)
    if self.ns_steps is not None:
      checks.count("ns_steps", self.ns_steps)
    triples_of(self.ns_coeffs, self.ns_steps)
    checks.choice("ns_norm", self.ns_norm, get_args(NormName))
    checks.choice("variance", self.variance, get_args(Variance))
    checks.choice("scale", self.scale, ("shape", "unit"))
    if self.scale != "shape" and self.consistent_rms is not None:
      raise ValueError(
        f"scale={self.scale!r} and consistent_rms={self.consistent_rms} are "
        "two scales; give one of them."
      )
    check_placement(self.placement)

  def plan(self, tree: Any) -> Plan:
    """`make_plan` with these options: no side is too long for Muon."""
    plan = make_plan(
      tree,
      self.dimension_numbers,
      max_precond_dim=2**31,
      stack_shards=self.placement.stack_shards,
    )
    check_two_sides(plan, "Muon")
    return plan

  def factor(self, shape: tuple[int, ...]) -> float:
    """The factor of the orthogonal matrix of a bucket of this shape."""
    inputs, outputs = shape[-2:]
    if self.consistent_rms is not None:
      return self.consistent_rms * max(inputs, outputs) ** 0.5
    least = 1.0 if self.scale == "shape" else 0.0
    return max(least, outputs / inputs) ** 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class NorMuonOptions(MuonOptions):
  """Options of NorMuon: those of Muon, with other defaults."""

  _: dataclasses.KW_ONLY
  ns_coeffs: Coefficients = "quintic"
  variance: Variance = "rows"
