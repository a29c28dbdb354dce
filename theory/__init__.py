"""Exact dynamics of SGD on linear regression, in closed form.

Second moments of one-pass SGD and its relatives on least squares obey closed
linear recursions of size O(d), solved here without a time loop where the
hyper-parameters are constant. Pure functions on NamedTuples; float64 on the
host for concrete arguments, differentiable and vmappable under
`theory.float64()`. Risks are excess risks, E[(w - w*)^T H (w - w*)] / 2.

Dimension key: D nodes (eigen-directions), M modes, T steps or times, K stages
or the size of a method's state, P parts of a risk, B batch, R runs.
"""

from .average_closed import (
  average_stages,
  ema_at,
  ema_stationary,
  tail_average_at,
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
from .closed import risk_at, risk_stages, state_at, stationary
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
from .sgd import final_risk, risk_scan, step
from .stability import chi, eta_max
from .types import Method, Problem, Risk, RiskParts, Schedule, Stages
from .volterra import fsl_risk, kernel, volterra_risk

__all__ = [
  "Method",
  "Problem",
  "Risk",
  "RiskParts",
  "Schedule",
  "Stages",
  "anytime",
  "average_stages",
  "avg_scan",
  "chi",
  "compress",
  "constant",
  "cosine",
  "discretise",
  "ema_at",
  "ema_stationary",
  "eta_max",
  "final_risk",
  "float64",
  "from_covariance",
  "from_spectrum",
  "fsl_risk",
  "inv_sqrt",
  "isotropic",
  "kernel",
  "linear",
  "power",
  "power_law",
  "precondition",
  "quarter_cosine",
  "risk_at",
  "risk_scan",
  "risk_stages",
  "schedule",
  "seesaw",
  "serial_fraction",
  "sketch_error",
  "sketched",
  "stages_of_steps",
  "state_at",
  "stationary",
  "step",
  "step_decay",
  "tail_average_at",
  "theta_ema",
  "theta_halflife_fraction",
  "theta_poly",
  "theta_tail",
  "theta_uniform",
  "theta_weighted",
  "unroll",
  "volterra_risk",
  "with_features",
  "wsd",
]
