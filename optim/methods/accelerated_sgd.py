"""Accelerated SGD: one momentum, one gradient, and how the two are mixed.

    m_t = beta m_{t-1} + g_t,    u_t = a m_t + c g_t

Three numbers, or schedules, make heavy ball, Nesterov, AccSGD, Lion, LaProp,
Adam, AdEMAMix with b1 = 0, simplified AdEMAMix, MARS without clipping and
Schedule-Free SGD out of this form; `docs/accelerated.md` has the table.

The momentum m is a sum, not an average: with constant gradients m grows to
g / (1 - beta).
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks, moments
from ..common.options import also_takes, takes
from ..common.tree import like, upcast, zeros
from .decay import Decay, descend

Precondition = Literal["none", "after", "before"]


class AcceleratedState(NamedTuple):
  """State of `scale_by_accelerated_sgd`."""

  count: jax.Array  # int32 []: calls.
  momentum: Any  # The sum m, like params, float32 or `mu_dtype`.
  nu: Any  # Average of the squared gradients, like params; () without one.


@dataclasses.dataclass(frozen=True, eq=False)
class AcceleratedOptions:
  """Options of `scale_by_accelerated_sgd`.

  Attributes:
    beta: Share of the old momentum kept at a step, in [0, 1); or a schedule of
      the count of calls, from 0.
    a: Weight of the momentum, which already has this step's gradient; any
      number, or a schedule.
    c: Weight of this step's gradient beside the momentum; any number, or a
      schedule. The default is heavy ball; a = beta, c = 1 is Nesterov.
    precondition: "after" divides a m + c g by Adam's sqrt(v / (1 - b2^t)) +
      eps; "before" divides the gradient that enters m and u (LaProp); "none"
      divides nothing and keeps no v.
    b2: Decay of v, the average of the squared gradients.
    eps: Added to the square root.
    sign: True takes the sign of the result (Lion, Signum).
    mu_dtype: Type of the momentum; None is float32.
  """

  beta: optax.ScalarOrSchedule = 0.9
  a: optax.ScalarOrSchedule = 1.0
  c: optax.ScalarOrSchedule = 0.0
  _: dataclasses.KW_ONLY
  precondition: Precondition = "none"
  b2: float = 0.999
  eps: float = 1e-8
  sign: bool = False
  mu_dtype: Any | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    if not callable(self.beta):
      checks.decay("beta", self.beta)
    checks.choice("precondition", self.precondition, get_args(Precondition))
    checks.decay("b2", self.b2)
    checks.positive("eps", self.eps, zero_too=True)


@takes(AcceleratedOptions)
def scale_by_accelerated_sgd(
  o: AcceleratedOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Mixes a momentum with the gradient, with a preconditioner if wanted.

      m_t = beta_t m_{t-1} + g_t,    u_t = P_t (a_t m_t + c_t g_t)

  P_t is 1, or 1 / (sqrt(v_t / (1 - b2^t)) + eps) with v_t the average of g_t^2.
  With `precondition="before"` P_t g_t replaces g_t instead. The first step is
  u_1 = P_1 (a + c) g_1.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range.

  References:
    Morwani et al., "Connections between Schedule-Free optimizers, AdEMAMix and
    accelerated SGD variants", 2025, https://arxiv.org/abs/2502.02431
    Ziyin et al., "LaProp", 2020, https://arxiv.org/abs/2002.04839
  """

  def init_fn(params):
    nu = zeros(params) if o.precondition != "none" else ()
    momentum = zeros(params, o.mu_dtype)
    return AcceleratedState(jnp.zeros((), jnp.int32), momentum, nu)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    beta, a, c = (_at(x, state.count) for x in (o.beta, o.a, o.c))
    count: Any = optax.safe_increment(state.count)
    grads, nu, roots = upcast(updates), state.nu, None
    if o.precondition != "none":
      nu = jax.tree.map(
        lambda g, v: moments.average(v, jnp.square(g), o.b2), grads, nu
      )
      roots = jax.tree.map(lambda v: moments.root(v, o.eps, o.b2, count), nu)
    if o.precondition == "before":
      grads = jax.tree.map(moments.divide, grads, roots)

    def mix(x, y, weight_x, weight_y):
      y = y.astype(x.dtype)
      return (weight_x * x + weight_y * y).astype(x.dtype)

    momentum = jax.tree.map(
      lambda g, m: mix(g, m, 1, beta), grads, state.momentum
    )
    steps = jax.tree.map(lambda g, m: mix(m, g, a, c), grads, momentum)
    if o.precondition == "after":
      steps = jax.tree.map(moments.divide, steps, roots)
    if o.sign:
      steps = jax.tree.map(jnp.sign, steps)
    kept = like(momentum, state.momentum)
    return like(steps, updates), AcceleratedState(count, kept, nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_accelerated_sgd)
def accelerated_sgd(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Accelerated SGD with weight decay; see `scale_by_accelerated_sgd`.

  Args:
    learning_rate: Number, array or schedule. The momentum is a sum, so a long
      run moves by (a / (1 - beta) + c) learning_rate a step.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    **direction: The arguments of `scale_by_accelerated_sgd`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_accelerated_sgd`.
  """
  return descend(
    scale_by_accelerated_sgd(**direction), learning_rate, weight_decay, mask
  )


class Acceleration(NamedTuple):
  """The three numbers of `scale_by_accelerated_sgd`."""

  beta: float
  a: float
  c: float


def acc_sgd_parameters(
  kappa: float, xi: float, small_constant: float = 0.7
) -> Acceleration:
  r"""The parameters of Jain and Kidambi as (beta, a, c).

      q = xi k0^2 / kappa,    z = k0 / (k0 + q)
      beta = z (1 - q),       a = (1 - z) (xi k0 - 1),    c = 1

      optim.accelerated_sgd(0.1, **optim.acc_sgd_parameters(1000, 10)._asdict())

  AccSGD makes a short step and a long step with each gradient, and goes back by
  a share of the way to the long step's point. The learning rate is that of the
  short step. With a schedule, chain the rate before the transform to have the
  authors' trajectory: their momentum holds gradients times their rates.

  Args:
    kappa: Ratio of the long step to the short step, > 0; the authors' default
      is 1000.
    xi: Statistical advantage, > 0; the authors' default is 10, and their theory
      wants at most sqrt(kappa).
    small_constant: k0 in (0, 1]; 0.7 in the authors' code.

  Returns:
    An `Acceleration`.

  Raises:
    ValueError: For a number out of range, or if xi k0^2 > kappa.

  References:
    Jain et al., "Accelerating stochastic gradient descent for least squares
    regression", 2017, https://arxiv.org/abs/1704.08227
    Kidambi et al., "On the insufficiency of existing momentum schemes for
    stochastic optimization", 2018, https://arxiv.org/abs/1803.05591
  """
  checks.positive("kappa", kappa)
  checks.positive("xi", xi)
  if not 0 < small_constant <= 1:
    raise ValueError(
      f"small_constant={small_constant} must be in (0, 1], e.g. 0.7."
    )
  q = xi * small_constant**2 / kappa
  if q > 1:
    raise ValueError(
      f"xi={xi} and kappa={kappa} give q = xi k0^2 / kappa = {q}, which must "
      "be at most 1; take xi <= sqrt(kappa), e.g. kappa=1000, xi=10."
    )
  z = small_constant / (small_constant + q)
  return Acceleration(z * (1 - q), (1 - z) * (xi * small_constant - 1), 1.0)


def _at(value: optax.ScalarOrSchedule, count: jax.Array) -> Any:
  return value(count) if callable(value) else value
