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
from .factor_curvature import factor_diagonal
from .grids import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, MXINT8, Grid
from .kronecker import Precision, refresh_counts
from .lotion import add_rounding_penalty, with_rounding_penalty
from .lotion_aliases import lotion_adamw, lotion_soap
from .muon import muon, scale_by_muon
from .quantize import (
  dequantize,
  neighbours,
  quantize,
  round_nearest,
  round_random,
  rounding_variance,
  saturated_share,
  step_size,
  straight_through,
  unique_codes,
)
from .quantize_params import mean_step_size, on_grid_share, quantize_params
from .scales import Quantizer
from .shampoo import scale_by_shampoo, shampoo
from .shampoo_analysis import (
  kronecker_cosine,
  kronecker_factors,
  kronecker_report,
  operator_cosine,
)
from .sharding import state_specs
from .smoothing import rounding_penalty, smoothed_loss, vertex_gradient
from .soap import scale_by_soap, soap

__all__ = [
  "DimensionNumbers",
  "E2M1",
  "E2M3",
  "E3M2",
  "E4M3",
  "E5M2",
  "Grid",
  "INT4",
  "INT8",
  "MXINT8",
  "Precision",
  "Quantizer",
  "add_rounding_penalty",
  "dequantize",
  "diagonal_preconditioner",
  "exact_ggn_diagonal",
  "factor_diagonal",
  "gauss_newton_bartlett_diagonal",
  "hutchinson_diagonal",
  "interpolate_bases",
  "kronecker_cosine",
  "kronecker_factors",
  "kronecker_report",
  "lotion_adamw",
  "lotion_soap",
  "make_plan",
  "mean_step_size",
  "muon",
  "neighbours",
  "on_grid_share",
  "operator_cosine",
  "quantize",
  "quantize_params",
  "refresh_counts",
  "round_nearest",
  "round_random",
  "rounding_penalty",
  "rounding_variance",
  "sampled_fisher_diagonal",
  "saturated_share",
  "scale_by_muon",
  "scale_by_shampoo",
  "scale_by_soap",
  "shampoo",
  "smoothed_loss",
  "soap",
  "state_specs",
  "step_size",
  "straight_through",
  "treatment_table",
  "unique_codes",
  "vertex_gradient",
  "with_rounding_penalty",
]
