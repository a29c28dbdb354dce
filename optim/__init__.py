"""Second-order and matrix optimisers as optax transforms.

Importing needs jax, optax and numpy only.
"""

from .averages.ema import AverageState, average_weights, averaged_params
from .averages.primal import PrimalAveragingState, primal_averaging
from .averages.schedule_free import schedule_free_adamw, schedule_free_sgd
from .common.evaluation import eval_names, eval_params
from .common.labels import path_groups
from .curvature.diagonals import (
  exact_ggn_diagonal,
  gauss_newton_bartlett_diagonal,
  hutchinson_diagonal,
  sampled_fisher_diagonal,
)
from .curvature.head import chunked_lm_head
from .curvature.kronecker_fit import (
  kronecker_cosine,
  kronecker_factors,
  kronecker_report,
  operator_cosine,
)
from .curvature.losses import (
  MeanLoss,
  mean_loss,
  softmax_cross_entropy,
  squared_error,
)
from .curvature.products import (
  Linearized,
  ggn_vector_product,
  hvp,
  linearize_at,
  local_value_and_grad,
)
from .diagonal.eigenbases import interpolate_bases
from .diagonal.transform import scale_by_diagonal_preconditioner
from .lotion.adamw import lotion_adamw
from .lotion.factor_diagonal import factor_diagonal
from .lotion.penalty import rounding_penalty, smoothed_loss
from .lotion.transform import (
  PenalizedState,
  RoundingPenaltyState,
  add_rounding_penalty,
  with_rounding_penalty,
)
from .matrices.factors import refresh_counts
from .matrices.kl_factors import Eigenvalues
from .matrices.layout import (
  CONV,
  OUT_IN,
  DimensionNumbers,
  by_rank,
  from_muon_dimension_numbers,
)
from .matrices.mars_correction import mars_correction
from .matrices.norm_rules import (
  fixed_radius,
  hyperball,
  norm_control,
  radial_brake,
  relative_step,
)
from .matrices.options import Precision, Storage
from .matrices.placement import Placement, state_specs
from .matrices.plan import make_plan, treatment_table
from .matrices.stacks import Momentum, Squares, Stacks
from .methods.accelerated_sgd import (
  Acceleration,
  acc_sgd_parameters,
  accelerated_sgd,
  scale_by_accelerated_sgd,
)
from .methods.adafactor import adafactor, scale_by_adafactor
from .methods.adalayer import adalayer, scale_by_adalayer
from .methods.ademamix import ademamix, scale_by_ademamix
from .methods.dampened_sgd import dampened_sgd, scale_by_dampened_momentum
from .methods.decay import Decay, descend
from .methods.kl_shampoo import kl_shampoo, scale_by_kl_shampoo
from .methods.mars import mars, scale_by_mars
from .methods.moso import moso, scale_by_moso
from .methods.muon import muon, muon_h, normuon, normuon_h, scale_by_muon
from .methods.scaling import LeafFacts, Multipliers, multipliers, rescaled
from .methods.shampoo import scale_by_shampoo, shampoo
from .methods.simplified_ademamix import (
  scale_by_simplified_ademamix,
  simplified_ademamix,
)
from .methods.soap import kl_soap, scale_by_soap, soap, soap_h
from .methods.soap_muon import scale_by_soap_muon, soap_muon
from .methods.sophia import scale_by_sophia_g, sophia_g
from .methods.spectral import normalize_spectral
from .methods.spheres import adam_h, on_sphere
from .methods.update_rms import with_update_rms
from .newton.cg import CG
from .newton.damping import LevenbergMarquardt
from .newton.line_search import (
  LineSearch,
  QuadraticLineSearch,
  line_search_losses,
)
from .newton.schedules import inner_schedule
from .newton.solver import GaussNewton, gauss_newton_solver
from .newton.state import GNInfo, GNState
from .newton.streaming import (
  MicrostepsState,
  gauss_newton_microsteps,
  has_updated,
  needs_line_search,
)
from .newton.transform import gauss_newton
from .rounding.grids import (
  E2M1,
  E2M3,
  E3M2,
  E4M3,
  E5M2,
  INT4,
  INT8,
  MXINT8,
  Grid,
)
from .rounding.params import mean_step_size, on_grid_share, quantize_params
from .rounding.product import (
  equation_axes,
  hadamard,
  quantized_dot_general,
  quantized_einsum,
  quantized_product,
)
from .rounding.round import (
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
from .rounding.scales import Quantizer
from .rounding.slots import PRODUCT_RECIPES, Slot, Slots

__all__ = [
  "Acceleration",
  "AverageState",
  "CG",
  "CONV",
  "Decay",
  "DimensionNumbers",
  "E2M1",
  "E2M3",
  "E3M2",
  "E4M3",
  "E5M2",
  "Eigenvalues",
  "GNInfo",
  "GNState",
  "GaussNewton",
  "Grid",
  "INT4",
  "INT8",
  "LeafFacts",
  "LevenbergMarquardt",
  "LineSearch",
  "Linearized",
  "MXINT8",
  "MeanLoss",
  "MicrostepsState",
  "Momentum",
  "Multipliers",
  "OUT_IN",
  "PRODUCT_RECIPES",
  "PenalizedState",
  "Placement",
  "Precision",
  "PrimalAveragingState",
  "QuadraticLineSearch",
  "Quantizer",
  "RoundingPenaltyState",
  "Slot",
  "Slots",
  "Squares",
  "Stacks",
  "Storage",
  "acc_sgd_parameters",
  "accelerated_sgd",
  "adafactor",
  "adalayer",
  "adam_h",
  "add_rounding_penalty",
  "ademamix",
  "average_weights",
  "averaged_params",
  "by_rank",
  "chunked_lm_head",
  "dampened_sgd",
  "dequantize",
  "descend",
  "equation_axes",
  "eval_names",
  "eval_params",
  "exact_ggn_diagonal",
  "factor_diagonal",
  "fixed_radius",
  "from_muon_dimension_numbers",
  "gauss_newton",
  "gauss_newton_bartlett_diagonal",
  "gauss_newton_microsteps",
  "gauss_newton_solver",
  "ggn_vector_product",
  "hadamard",
  "has_updated",
  "hutchinson_diagonal",
  "hvp",
  "hyperball",
  "inner_schedule",
  "interpolate_bases",
  "kl_shampoo",
  "kl_soap",
  "kronecker_cosine",
  "kronecker_factors",
  "kronecker_report",
  "line_search_losses",
  "linearize_at",
  "local_value_and_grad",
  "lotion_adamw",
  "make_plan",
  "mars",
  "mars_correction",
  "mean_loss",
  "mean_step_size",
  "moso",
  "multipliers",
  "muon",
  "muon_h",
  "needs_line_search",
  "neighbours",
  "norm_control",
  "normalize_spectral",
  "normuon",
  "normuon_h",
  "on_grid_share",
  "on_sphere",
  "operator_cosine",
  "path_groups",
  "primal_averaging",
  "quantize",
  "quantize_params",
  "quantized_dot_general",
  "quantized_einsum",
  "quantized_product",
  "radial_brake",
  "refresh_counts",
  "relative_step",
  "rescaled",
  "round_nearest",
  "round_random",
  "rounding_penalty",
  "rounding_variance",
  "sampled_fisher_diagonal",
  "saturated_share",
  "scale_by_accelerated_sgd",
  "scale_by_adafactor",
  "scale_by_adalayer",
  "scale_by_ademamix",
  "scale_by_dampened_momentum",
  "scale_by_diagonal_preconditioner",
  "scale_by_kl_shampoo",
  "scale_by_mars",
  "scale_by_moso",
  "scale_by_muon",
  "scale_by_shampoo",
  "scale_by_simplified_ademamix",
  "scale_by_soap",
  "scale_by_soap_muon",
  "scale_by_sophia_g",
  "schedule_free_adamw",
  "schedule_free_sgd",
  "shampoo",
  "simplified_ademamix",
  "smoothed_loss",
  "soap",
  "soap_h",
  "soap_muon",
  "softmax_cross_entropy",
  "sophia_g",
  "squared_error",
  "state_specs",
  "step_size",
  "straight_through",
  "treatment_table",
  "unique_codes",
  "with_rounding_penalty",
  "with_update_rms",
]
