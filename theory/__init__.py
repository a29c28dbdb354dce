"""Exact dynamics of SGD on linear regression, in closed form.

The second moments of one-pass SGD on least squares obey a linear recursion of
size O(d). At constant step and batch size this package solves the recursion
without a loop over time. All functions are pure and take and return
NamedTuples of arrays. Concrete arguments are computed in float64 on the host.
Under `theory.float64()` the functions can be differentiated and vmapped. A risk
is an excess risk, E[(w - w*)^T H (w - w*)] / 2.

Dimension key: D nodes (eigen-directions), M modes, T steps or times, K stages
or the size of a method's state, P parts of a risk, B batch, R runs.
"""

from .adaptive import (
  Adaptive,
  grad_second_moment,
  nsgd_scan,
  rms_scan,
  sign_scan,
)
from .averages import (
  avg_scan,
  theta_ema,
  theta_halflife_fraction,
  theta_poly,
  theta_tail,
  theta_uniform,
  theta_weighted,
)
from .averages_closed import (
  average_stages,
  ema_at,
  ema_stages,
  ema_stationary,
  tail_average_at,
)
from .best_steps import BestStep, best_step
from .bounds import Bound, chi_bound, effective_dim, zou_bound
from .critical_batches import (
  StepsFit,
  critical_batch,
  data_to_target,
  eta_grid,
  noise_scale,
  risk_table,
  steps_fit,
)
from .fits import Fit, chinchilla, isoflop_optimum, kaplan
from .identifiability import UndeterminedError
from .logistic import LogisticPath, logistic_moments, logistic_path
from .method_moments import (
  method_chi,
  method_eta_max,
  method_scan,
  method_stationary,
)
from .methods import (
  ademamix,
  asgd,
  averaged,
  decoupled,
  heavy_ball,
  nesterov,
  schedule_free,
  sgd,
  weight_decay,
)
from .monte_carlo import Sampled, simulate
from .power_fits import cbs_law, kappa_profile, power_law_fit, shifted_power
from .precision import float64
from .problems import (
  compress,
  from_covariance,
  from_spectrum,
  isotropic,
  power_law,
  precondition,
  sketch_error,
  sketched,
  with_features,
)
from .quantized import (
  GridPoint,
  best_grid_point,
  rounding_risk,
  smoothed_risk,
  smoothed_risk_gradient,
)
from .rates import Exponents, exponents, gamma_star, slope
from .risk_closed import risk_at, risk_stages, state_at, stationary
from .schedules import (
  anytime,
  constant,
  cosine,
  discretise,
  inv_sqrt,
  linear,
  power,
  quarter_cosine,
  schedule,
  seesaw,
  serial_fraction,
  stages_of_steps,
  step_decay,
  unroll,
  wsd,
)
from .sgd_moments import final_risk, risk_scan, step
from .stability import chi, eta_max
from .types import Method, Problem, Risk, RiskParts, Schedule, Stages
from .volterra import fsl_risk, kernel, volterra_risk

__all__ = [
  "Adaptive",
  "BestStep",
  "Bound",
  "Exponents",
  "Fit",
  "GridPoint",
  "LogisticPath",
  "Method",
  "Problem",
  "Risk",
  "RiskParts",
  "Sampled",
  "Schedule",
  "Stages",
  "StepsFit",
  "UndeterminedError",
  "ademamix",
  "anytime",
  "asgd",
  "average_stages",
  "averaged",
  "avg_scan",
  "best_grid_point",
  "best_step",
  "cbs_law",
  "chi",
  "chi_bound",
  "chinchilla",
  "compress",
  "constant",
  "cosine",
  "critical_batch",
  "data_to_target",
  "decoupled",
  "discretise",
  "effective_dim",
  "ema_at",
  "ema_stages",
  "ema_stationary",
  "eta_grid",
  "eta_max",
  "exponents",
  "final_risk",
  "float64",
  "from_covariance",
  "from_spectrum",
  "fsl_risk",
  "gamma_star",
  "grad_second_moment",
  "heavy_ball",
  "inv_sqrt",
  "isoflop_optimum",
  "isotropic",
  "kaplan",
  "kappa_profile",
  "kernel",
  "linear",
  "logistic_moments",
  "logistic_path",
  "method_chi",
  "method_eta_max",
  "method_scan",
  "method_stationary",
  "nesterov",
  "noise_scale",
  "nsgd_scan",
  "power",
  "power_law",
  "power_law_fit",
  "precondition",
  "quarter_cosine",
  "risk_at",
  "risk_scan",
  "risk_stages",
  "risk_table",
  "rms_scan",
  "rounding_risk",
  "schedule",
  "schedule_free",
  "seesaw",
  "serial_fraction",
  "sgd",
  "shifted_power",
  "sign_scan",
  "simulate",
  "sketch_error",
  "sketched",
  "slope",
  "smoothed_risk",
  "smoothed_risk_gradient",
  "stages_of_steps",
  "state_at",
  "stationary",
  "step",
  "step_decay",
  "steps_fit",
  "tail_average_at",
  "theta_ema",
  "theta_halflife_fraction",
  "theta_poly",
  "theta_tail",
  "theta_uniform",
  "theta_weighted",
  "unroll",
  "volterra_risk",
  "weight_decay",
  "with_features",
  "wsd",
  "zou_bound",
]
