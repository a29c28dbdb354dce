"""The values the package takes and returns: plain NamedTuples of arrays.

Each NamedTuple is a pytree: `jax.vmap`, `jax.grad` and `jax.tree.map` see its
fields. Dimension key of the package: D nodes (eigen-directions), M modes,
T steps or times, K stages or block size, B batch, R runs. The fields have the
papers' symbols as names, without a suffix for the shape.
"""

from typing import Any, NamedTuple

Array = Any  # NumPy on the host, jax.Array under a transformation.


class Problem(NamedTuple):
  """Least squares y = <w*, x> + e with x ~ N(0, H), seen in H's eigenbasis.

  Node k stands for `mult[k]` directions of eigenvalue `lam[k]`; `m0[k]` is
  the sum over these directions of E[(w_0 - w*)^2]. The features enter every
  function only through the diagonal of their fourth moment,

      E[x x^T M x x^T]_ii = kappa lam_i^2 M_ii + tau lam_i tr(H M).

  Attributes:
    lam: [D] eigenvalues of the feature covariance H, >= 0.
    m0: [D] squared initial error of each node, >= 0.
    mult: [D] multiplicities, >= 0, not necessarily whole. A node with
      multiplicity 0 carries signal and receives no noise (see `compress`).
    sigma2: Variance of the label noise e (the loss floor is sigma2 / 2).
    kappa: Own-direction fourth moment; 2 for Gaussian features. May be [D].
    tau: Cross-direction fourth moment; 1 for Gaussian features.
  """

  lam: Array
  m0: Array
  mult: Array
  sigma2: Array
  kappa: Array = 2.0
  tau: Array = 1.0


class Schedule(NamedTuple):
  """One step size and batch size per update.

  Attributes:
    eta: [T] step sizes, multiplying the mean batch gradient of
      (residual)^2 / 2.
    batch: [T] batch sizes >= 1; may be `inf` (gradient descent).
  """

  eta: Array
  batch: Array


class Stages(NamedTuple):
  """A schedule that is constant on each of K stages.

  Attributes:
    eta: [K] step sizes.
    batch: [K] batch sizes.
    steps: [K] lengths in updates, >= 0; may be real for risks.
  """

  eta: Array
  batch: Array
  steps: Array


class Risk(NamedTuple):
  """Excess risk E[(w - w*)^T H (w - w*)] / 2 and what it is made of.

  Attributes:
    total: bias + variance, one value per time asked for.
    bias: The risk with noiseless labels.
    variance: The risk of a run that starts at w*: the effect of label noise.
    stable: False if any step lies beyond the mean-square stability limit
      (`eta_max`). The values are exact there too, and grow with time.
  """

  total: Array
  bias: Array
  variance: Array
  stable: Array


class RiskParts(NamedTuple):
  """Excess risk in three exact parts; `mean + multiplicative` is the bias.

  Attributes:
    total: Sum of the three.
    mean: Risk of the expected iterate, that is of gradient descent.
    multiplicative: Risk from the sampling of the features.
    additive: Risk from the label noise.
    stable: See `Risk`.
  """

  total: Array
  mean: Array
  multiplicative: Array
  additive: Array
  stable: Array


class Method(NamedTuple):
  """A linear method: per eigen-direction s' = P s - f g, g the gradient at e.s.

  Attributes:
    P: [K, K] transition, or [T, K, K] when it changes with the step.
    f: [K] (or [T, K]) how the gradient enters.
    e: [K] (or [T, K]) the point where the gradient is taken is e . s.
    h: [K] (or [T, K]) read-out: the risk is that of h . s.
    start: [K] the initial state is `start` times (w_0 - w*): 1 for copies
      of the iterate, 0 for momenta.
  """

  P: Array
  f: Array
  e: Array
  h: Array
  start: Array
