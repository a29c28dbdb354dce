"""Second-order and matrix optimisers as optax transforms.

Importing needs jax, optax and numpy only.
"""

from .averaging import AverageState, average_weights, averaged_params
from .blocks import make_plan, treatment_table
from .chunked_head import chunked_lm_head
from .conjugate_gradient import CG
from .coordinates import interpolate_bases
from .curvature import (
  Linearized,
  ggn_vector_product,
  hvp,
  linearize_at,
  local_value_and_grad,
)
from .dampings import LevenbergMarquardt
from .diagonal import diagonal_preconditioner
from .dimensions import DimensionNumbers
from .estimators import (
  exact_ggn_diagonal,
  gauss_newton_bartlett_diagonal,
  hutchinson_diagonal,
  sampled_fisher_diagonal,
)
from .factor_curvature import factor_diagonal
from .gauss_newton import gauss_newton
from .gauss_newton_state import GNInfo, GNState
from .grids import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, MXINT8, Grid
from .inner_schedules import inner_schedule
from .kronecker import Precision, refresh_counts
from .losses import MeanLoss, mean_loss, softmax_cross_entropy, squared_error
from .lotion import (
  PenalizedState,
  RoundingPenaltyState,
  add_rounding_penalty,
  with_rounding_penalty,
)
from .lotion_aliases import lotion_adamw, lotion_soap
from .microsteps import (
  MicrostepsState,
  gauss_newton_microsteps,
  has_updated,
  needs_line_search,
)
from .muon import muon, scale_by_muon
from .outer_step import GaussNewton, gauss_newton_solver
from .paths import path_groups
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
from .searches import LineSearch, QuadraticLineSearch, line_search_losses
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
  "AverageState",
  "CG",
  "DimensionNumbers",
  "E2M1",
  "E2M3",
  "E3M2",
  "E4M3",
  "E5M2",
  "GNInfo",
  "GNState",
  "GaussNewton",
  "Grid",
  "INT4",
  "INT8",
  "LevenbergMarquardt",
  "LineSearch",
  "Linearized",
  "MXINT8",
  "MeanLoss",
  "MicrostepsState",
  "PenalizedState",
  "Precision",
  "QuadraticLineSearch",
  "Quantizer",
  "RoundingPenaltyState",
  "add_rounding_penalty",
  "average_weights",
  "averaged_params",
  "chunked_lm_head",
  "dequantize",
  "diagonal_preconditioner",
  "exact_ggn_diagonal",
  "factor_diagonal",
  "gauss_newton",
  "gauss_newton_bartlett_diagonal",
  "gauss_newton_microsteps",
  "gauss_newton_solver",
  "ggn_vector_product",
  "has_updated",
  "hutchinson_diagonal",
  "hvp",
  "inner_schedule",
  "interpolate_bases",
  "kronecker_cosine",
  "kronecker_factors",
  "kronecker_report",
  "line_search_losses",
  "linearize_at",
  "local_value_and_grad",
  "lotion_adamw",
  "lotion_soap",
  "make_plan",
  "mean_loss",
  "mean_step_size",
  "muon",
  "needs_line_search",
  "neighbours",
  "on_grid_share",
  "operator_cosine",
  "path_groups",
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
  "softmax_cross_entropy",
  "squared_error",
  "state_specs",
  "step_size",
  "straight_through",
  "treatment_table",
  "unique_codes",
  "vertex_gradient",
  "with_rounding_penalty",
]
