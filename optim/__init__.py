"""Second-order and matrix optimisers as optax transforms.

Importing needs jax, optax and numpy only.
"""

from .blocks import make_plan, treatment_table
from .coordinates import interpolate_bases
from .diagonal import diagonal_preconditioner
from .dimensions import DimensionNumbers
from .estimators import (
  exact_ggn_diagonal,
  gauss_newton_bartlett_diagonal,
  hutchinson_diagonal,
  sampled_fisher_diagonal,
)
from .kronecker import Precision, refresh_counts
from .muon import muon, scale_by_muon
from .shampoo import scale_by_shampoo, shampoo
from .shampoo_analysis import (
  kronecker_cosine,
  kronecker_factors,
  kronecker_report,
  operator_cosine,
)
from .sharding import state_specs
from .soap import scale_by_soap, soap

__all__ = [
  "DimensionNumbers",
  "Precision",
  "diagonal_preconditioner",
  "exact_ggn_diagonal",
  "gauss_newton_bartlett_diagonal",
  "hutchinson_diagonal",
  "interpolate_bases",
  "kronecker_cosine",
  "kronecker_factors",
  "kronecker_report",
  "make_plan",
  "muon",
  "operator_cosine",
  "refresh_counts",
  "sampled_fisher_diagonal",
  "scale_by_muon",
  "scale_by_shampoo",
  "scale_by_soap",
  "shampoo",
  "soap",
  "state_specs",
  "treatment_table",
]
