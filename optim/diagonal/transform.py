r"""Adam, GN^-1/2 and GN^-1 as one transform: power x basis x estimator.

A diagonal preconditioner in an orthonormal basis U is

    u = U D U^T g,    D_i = 1 / ((nu_i + damping)^-power + eps)

with nu the average of an estimate of the diagonal of U^T G U: Adam without
momentum is (-1/2, "identity", "empirical_fisher"), SOAP's basis is
"kronecker", Sophia's curvature is (-1, "identity", "gnb"). The transform is for
studying what each of the three choices does; see `docs/diagonal.md`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..common import checks
from ..common.options import takes
from ..common.tree import is_masked
from ..curvature import diagonals
from ..matrices.any_mesh import on_any_mesh
from ..matrices.factors import screen_leaf
from ..matrices.layout import DimensionTree
from . import eigenbases

Estimator = Literal["empirical_fisher", "ggn", "gnb"]
ESTIMATORS = get_args(Estimator)
_EXTRA = ("curvature_batch", "key", "curvature_weights")


class DiagonalState(NamedTuple):
  """State of `scale_by_diagonal_preconditioner`."""

  count: jax.Array  # int32 []: calls.
  weight: jax.Array  # []: sum of nu's weights, 1 - decay^count.
  nu: Any  # In the basis: like params, flat [P], or a `Split`.
  bases: Any  # `Dense`, `Sides`, or () for a basis that does not move.


@dataclasses.dataclass(frozen=True, eq=False)
class DiagonalOptions:
  """Options of `scale_by_diagonal_preconditioner`.

  Attributes:
    power: In [-1, 0): -1 is Newton's, -1/2 is Adam's.
    basis: "identity"; "eigen", all eigenvectors of G, for at most 5,000
      parameters; "kronecker", eigenvectors of E[G G^T] and E[G^T G] for each
      matrix (SOAP's); or an orthonormal matrix [P, P] for the flattened params,
      e.g. `interpolate_bases`.
    estimator: The estimator of G. "empirical_fisher" is g g^T of the gradients
      that are passed, with their noise. "ggn" is J^T H J of the curvature
      batch, exact, for small problems. "gnb" is one draw of labels, unbiased
      for J^T H J.
    model_fn: (params, batch) -> outputs; see `optim.exact_ggn_diagonal` and
      `optim.gauss_newton_bartlett_diagonal`.
    loss_fn: (outputs, batch) -> scalar mean, for "ggn".
    likelihood: The likelihood of the outputs, for "gnb".
    decay: Decay of nu, in [0, 1); 0 takes the present estimate alone.
    eps: Added to (nu^ + damping)^-power, as Adam adds eps.
    damping: Added to nu^, in units of curvature.
    basis_estimator: The estimator of the G that makes the basis; None is
      `estimator`.
    basis_decay: Decay of the averages that make the basis; None is `decay`.
    basis_update_period: Calls between two refreshes of the basis, >= 1.
    dimension_numbers: Which axes are stack, input and output, for "kronecker";
      see `DimensionNumbers`.
    max_precond_dim: For "kronecker": a side longer than this keeps the
      identity.
  """

  power: float = -0.5
  basis: Literal["identity", "eigen", "kronecker"] | jax.Array = "identity"
  estimator: Estimator = "empirical_fisher"
  _: dataclasses.KW_ONLY
  model_fn: Callable[[Any, Any], Any] | None = None
  loss_fn: Callable[[Any, Any], jax.Array] | None = None
  likelihood: diagonals.Likelihood = "categorical"
  decay: float = 0.95
  eps: float = 1e-8
  damping: float = 0.0
  basis_estimator: Estimator | None = None
  basis_decay: float | None = None
  basis_update_period: int = 1
  dimension_numbers: DimensionTree = None
  max_precond_dim: int = 10_000

  @property
  def moves(self) -> bool:
    """Whether the basis follows an estimate."""
    return isinstance(self.basis, str) and self.basis != "identity"

  @property
  def makes_basis(self) -> Estimator:
    """The estimator of the G that makes the basis."""
    return self.basis_estimator or self.estimator

  @property
  def kept_share(self) -> float:
    """Decay of the averages that make the basis."""
    return self.decay if self.basis_decay is None else self.basis_decay

  def __post_init__(self):
    """Raises for any argument out of range."""
    if not isinstance(self.power, jax.core.Tracer) and not -1 <= self.power < 0:
      raise ValueError(
        f"power={self.power} must be in [-1, 0): -1 divides by the curvature, "
        "-0.5 by its root."
      )
    _check_basis(self.basis)
    checks.choice("estimator", self.estimator, ESTIMATORS)
    if self.basis_estimator is not None:
      checks.choice("basis_estimator", self.basis_estimator, ESTIMATORS)
      if not self.moves:
        raise ValueError(
          f"basis_estimator={self.basis_estimator!r} makes no basis: basis is "
          f"{self.basis!r}. Leave it out, or take basis='eigen' or 'kronecker'."
        )
    checks.choice("likelihood", self.likelihood, diagonals.LIKELIHOODS)
    for name in ("decay", "basis_decay"):
      if getattr(self, name) is not None:
        checks.decay(name, getattr(self, name))
    for name in ("eps", "damping"):
      checks.positive(name, getattr(self, name), zero_too=True)
    for name in ("basis_update_period", "max_precond_dim"):
      checks.count(name, getattr(self, name))
    _check_model(self)


@takes(DiagonalOptions)
def scale_by_diagonal_preconditioner(
  o: DiagonalOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Divides gradients, in a basis, by a power of a curvature's diagonal.

      nu = decay nu + (1 - decay) diag(U^T G U),    nu^ = nu / (1 - decay^t)
      u  = U (U^T g / ((nu^ + damping)^-power + eps))

  `update(grads, state, params, *, curvature_batch, key, curvature_weights)`:
  "ggn" needs params and a batch, "gnb" a key as well; both may come from other
  data than the gradient. A batch has the same shapes at each call.

  When the basis moves, nu becomes the diagonal of U diag(nu) U^T in the new
  basis. "empirical_fisher" makes the basis from the gradients before this
  gradient (identity at the first call): a gradient is diagonal in its own
  eigenbasis. The other estimators refresh the basis before the step.

  A leaf of the gradient that is not finite is replaced by zeros. An estimate or
  a basis that is not finite is left out of the averages.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. Under
    `optax.inject_hyperparams`, `static_args` are "basis_update_period",
    "max_precond_dim", and "model_fn", "loss_fn" where they are given.

  Raises:
    ValueError: For an argument out of range or missing; at `init`, for a leaf
      or a basis that does not fit; at `update`, for a missing extra argument.

  References:
    Liu et al., "Adam or Gauss-Newton? A comparative study in terms of basis
    alignment and SGD noise", 2025, https://arxiv.org/abs/2510.13680
  """
  engine = _engine(o)

  def update_fn(updates, state, params=None, **extra):
    if not jax.tree.leaves(updates):
      return updates, state
    extra = {k: extra.get(k) for k in _EXTRA}
    grads = jax.tree.map(screen_leaf, updates)
    # The model runs here, and not in the engine: its axes stay Explicit.
    pairs = _pairs(o, o.moves, grads, params, extra)
    return engine.update(grads, state, pairs=pairs)

  return optax.GradientTransformationExtraArgs(engine.init, update_fn)


@on_any_mesh
def _engine(o: DiagonalOptions) -> optax.GradientTransformationExtraArgs:
  """The transform, once the rows of the estimates are there."""
  family = _family(o)
  moves, basis_decay = o.moves, o.kept_share

  def init_fn(params):
    diagonals.check_floating(params)
    bases = family.init(params)
    nu = jax.tree.map(jnp.zeros_like, family.into(bases, params))
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(nu))
    count, weight = jnp.zeros((), jnp.int32), jnp.zeros((), dtype)
    return DiagonalState(count, weight, nu, bases)

  def update_fn(
    updates, state, params=None, *, pairs: Any = None, **extra_args
  ):
    del params, extra_args
    bases, nu = state.bases, state.nu

    def refreshed(bases, nu, first):
      due = (state.count >= first) & (
        (state.count - first) % o.basis_update_period == 0
      )
      keep = lambda *operands: operands  # noqa: E731
      return jax.lax.cond(due, family.refresh, keep, bases, nu)

    if moves and o.makes_basis == "empirical_fisher":
      bases, nu = refreshed(bases, nu, 1)
    if moves:
      a, b = pairs[o.makes_basis]
      seen = family.observe(bases, a, b, basis_decay)
      bases = _where_finite(seen, bases)
    if moves and o.makes_basis != "empirical_fisher":
      bases, nu = refreshed(bases, nu, 0)

    nu, weight = _average(
      nu, state.weight, _diagonal(family, bases, *pairs[o.estimator]), o.decay
    )

    def divide(g, v):
      v = jnp.maximum(v, 0) / jnp.maximum(weight, 1e-30)  # Rounding below 0.
      u = g / ((v + o.damping) ** -o.power + o.eps)
      return jnp.where(weight > 0, u, 0).astype(g.dtype)

    scaled = jax.tree.map(divide, family.into(bases, updates), nu)
    updates = family.back(bases, scaled, updates)
    count: Any = optax.safe_increment(state.count)
    return updates, DiagonalState(count, weight, nu, bases)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _family(o) -> eigenbases.Coordinates:
  if not isinstance(o.basis, str):
    return eigenbases.supplied(jnp.asarray(o.basis))
  if o.basis == "eigen":
    return eigenbases.eigen()
  if o.basis == "kronecker":
    return eigenbases.sides(o.dimension_numbers, o.max_precond_dim)
  return eigenbases.identity()


def _pairs(o, moves, grads, params, extra) -> dict[str, tuple[Any, Any]]:
  """Rows a, b with G = sum_k a_k b_k^T, of each estimator that is in use."""
  batch, key, weights = (extra[name] for name in _EXTRA)
  used = {o.estimator, *([o.makes_basis] if moves else [])}
  _check_extra(used, params, extra)
  pairs = {}
  if "empirical_fisher" in used:
    rows = jax.tree.map(lambda x: x[None], grads)
    pairs["empirical_fisher"] = rows, rows
  if "ggn" in used:
    pairs["ggn"] = diagonals.ggn_rows(o.model_fn, o.loss_fn, params, batch)
  if "gnb" in used:
    draw = diagonals.sampler(o.model_fn, params, batch, weights, o.likelihood)
    rows = jax.tree.map(lambda x: x[None], draw(key))
    pairs["gnb"] = rows, rows
  return pairs


def _diagonal(family, bases, a, b):
  """diag(U^T G U) of rows a, b."""
  into = jax.vmap(lambda tree: family.into(bases, tree))
  same = a is b
  a = into(a)
  b = a if same else into(b)
  return jax.tree.map(lambda x, y: jnp.sum(x * y, axis=0), a, b)


def _average(nu, weight, new, decay):
  """Moves nu and the sum of its weights, unless `new` is not finite."""
  ok = jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(new)])
  )

  def move(old, x):
    average = decay * old + (1 - decay) * x
    return jnp.where(ok, average, old).astype(old.dtype)

  return jax.tree.map(move, nu, new), move(weight, 1.0)


def _where_finite(new, old):
  def choose(x, y):
    ok = jnp.all(jnp.isfinite(x))
    return jnp.where(ok, x, y)

  return jax.tree.map(choose, new, old)


def _check_basis(basis: Any) -> None:
  """Raises unless it is one of the names or an orthonormal matrix."""
  if isinstance(basis, str):
    choices = ("identity", "eigen", "kronecker")
    checks.choice("basis", basis, choices)
  elif not hasattr(basis, "shape"):
    raise ValueError(
      f"basis={basis!r} must be 'identity', 'eigen', 'kronecker' or an "
      "orthonormal matrix, e.g. optim.interpolate_bases(start, end, 0.5)."
    )
  elif not isinstance(basis, jax.core.Tracer):
    eigenbases.check_orthonormal("basis", np.asarray(basis))


def _check_model(o: DiagonalOptions) -> None:
  """Raises if an estimator lacks the functions it differentiates."""
  needs = {"ggn": ("model_fn", "loss_fn"), "gnb": ("model_fn",)}
  for estimator in {o.estimator, o.makes_basis}:
    for name in needs.get(estimator, ()):
      if getattr(o, name) is None:
        raise ValueError(
          f"{name}=None, but estimator {estimator!r} differentiates it; pass "
          f"{name}=..., or take 'empirical_fisher', which needs none."
        )


def _check_extra(used, params, extra) -> None:
  """Raises if `update` lacks what the estimators in use need."""
  curvature = sorted(used - {"empirical_fisher"})
  if not curvature:
    return
  missing = ["params"] if params is None else []
  names = ["curvature_batch", *(["key"] if "gnb" in used else [])]
  missing += [name for name in names if extra[name] is None]
  if missing:
    raise ValueError(
      f"{' and '.join(missing)} missing: the estimator {curvature[0]!r} is of "
      "the model at params on a batch. Call tx.update(grads, state, params, "
      "curvature_batch=batch, key=key)."
    )
  if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
    raise ValueError(
      f"params are masked, but the estimator {curvature[0]!r} runs the whole "
      "model. Mask outside the curvature: precondition everything, and choose "
      "among the updates afterwards; or take 'empirical_fisher'."
    )
