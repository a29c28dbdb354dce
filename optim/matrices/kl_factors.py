r"""KL factors: each side's statistic is the gradient whitened by the others.

The L and R that minimise KL(N(0, E[vec(G) vec(G)^T]) || N(0, L x R)) satisfy

    L = E[G R^-1 G^T] / O,    R = E[G^T L^-1 G] / I

R^-1 is Q_R diag(1 / l_R) Q_R^T with the basis Q_R at hand and eigenvalues l_R,
which are averages of their own: of the squares of the rotated gradient, each
column divided by the other side's eigenvalue. So the eigenvalues are never
older than a call, however seldom a basis is refreshed.

A side without a factor whitens by nothing. With more than two sides, the mean
is over all other axes, and the gradient is whitened by all other sides. Only
the product of all sides is defined: a factor that one side gains may be lost by
another.

Lin et al., "Understanding and improving Shampoo and SOAP via Kullback-Leibler
minimization", 2025, https://arxiv.org/abs/2509.03378.

Dimension key: see `plan.py`.
"""

import math
import string
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common import checks
from . import factors, linalg
from .factors import KLKronecker
from .options import Precision
from .padding import entries, others
from .plan import Bucket, Plan
from .stacks import Split, Stacks


class Eigenvalues(NamedTuple):
  """How KL factors start and keep the eigenvalues l of their sides.

  The defaults do not depend on the scale of the gradients. All other values are
  for comparisons with the authors' programs; `docs/soap.md` lists them.

  Attributes:
    start: l of every side before it is averaged, > 0. None: the root mean
      square of the first gradient of a matrix that is not zero (its 2/k-th
      power with k factored sides, so that the product of all l is the mean
      square). The published KL-Shampoo has 0.1, and needs tens of calls to
      leave it if gradients are small.
    first_gram: Number by which the first Gram matrices are divided; None is the
      l of the start.
    largest_inverse_root: c, or a function from the length of a side to c: l is
      raised to c^-2 after each average. None: no cap. A cap is not free of
      scale.
    damping: d, in units of the product of all l, i.e. of gradient^2: l is
      averaged as if each gradient had independent noise of this variance.
    kind: "average", or, as Emerging-Optimizers has, "quotients": l is
      diag(Q^T P Q) after each refresh, divided by the bias correction of P.
      "raw_quotients" are not divided. If matrices are refreshed seldom, P is
      whitened by an l that is far off.
  """

  start: float | None = None
  first_gram: float | None = None
  largest_inverse_root: float | Callable[[int], float] | None = None
  damping: float = 0.0
  kind: Literal["average", "quotients", "raw_quotients"] = "average"

  def check(self) -> None:
    """Raises for a number out of range."""
    for name in ("start", "first_gram"):
      if getattr(self, name) is not None:
        checks.positive(f"eigenvalues.{name}", getattr(self, name))
    checks.positive("eigenvalues.damping", self.damping, zero_too=True)
    kinds = ("average", "quotients", "raw_quotients")
    checks.choice("eigenvalues.kind", self.kind, kinds)
    cap = self.largest_inverse_root
    if cap is not None and not callable(cap):
      checks.positive("eigenvalues.largest_inverse_root", cap)


def with_eigenvalues(plan: Plan, state: Any) -> Any:
  """A new state of `factors.init`, with l = 0: not started."""
  if plan.empty:
    return state
  result = Stacks()
  for bucket in plan.buckets:
    sides = zip(bucket.shape, bucket.factored, strict=True)
    scales = tuple(
      jnp.zeros((bucket.size, n), bucket.dtype) if has else None
      for n, has in sides
    )
    result[bucket.name] = KLKronecker(
      **state[bucket.name]._asdict(), scales=scales
    )
  return result


def whitener(e: Eigenvalues, precision: str) -> factors.Whiten:
  """What `factors.observe` takes as `whiten`; one product a matrix more.

  The eigenvalues of the factors start here, if they have not before.

  A matrix has two sides. The last is whitened by Q_L^T G, which the gradient's
  way into its bases has as well: with the same precision the compiler makes it
  once. The first is whitened by G (Q_R l_R^(-1/2)).
  """

  def whiten(bucket: Bucket, kept: KLKronecker, x: jax.Array):
    fresh_S1 = is_fresh(kept)[:, None]
    kept = _started(bucket, kept, x, e)
    roots = inverse_roots(kept.scales)
    if e.first_gram is not None:
      whitening = max(1, sum(bucket.factored) - 1)
      first = e.first_gram ** (-0.5 / whitening)
      roots = [
        None if root is None else jnp.where(fresh_S1, first, root)
        for root in roots
      ]
    sides = [side for side, has in enumerate(bucket.factored) if has]
    result: list[Any] = [None] * len(bucket.factored)
    for side in sides:
      bases: list[Any] = _without(kept.derived, side)
      scales: list[Any] = _without(roots, side)
      share = 1 / np.sqrt(others(bucket, side, x.dtype))
      first = next((s for s in sides if s != side), None)
      if first is None:
        result[side] = x * share.reshape(-1, *[1] * (x.ndim - 1))
        continue
      scales[first] = scales[first] * share[:, None]
      if side == sides[-1]:
        y = factors.rotate(x, bases, transpose=True, precision=precision)
        result[side] = scale_sides(y, scales)
        continue
      bases = [
        q if q is None else q.astype(x.dtype) * l[:, None]
        for q, l in zip(bases, scales, strict=True)
      ]
      result[side] = factors.rotate(
        x, bases, transpose=True, precision=precision
      )
    return kept, result

  return whiten


def inward(precision: Precision) -> Precision:
  """Precision of a gradient's way into its bases: G' is a statistic of l."""
  return precision._replace(rotation=precision.statistics)


def _started(
  bucket: Bucket, kept: KLKronecker, x: jax.Array, e: Eigenvalues
) -> KLKronecker:
  """The factors, their eigenvalues started by x where they were not yet."""
  if e.start is None:
    size = entries(bucket, x.dtype)
    mean = jnp.sum(jnp.square(x), axis=range(1, x.ndim)) / size
    some = mean > 0  # The root of 0 has no derivative.
    power = 1 / sum(bucket.factored)
    first_S = jnp.where(some, jnp.where(some, mean, 1) ** power, 0)
  else:
    first_S = jnp.full(x.shape[0], e.start, x.dtype)
  fresh_S = is_fresh(kept)
  scales = tuple(
    None if l is None else jnp.where(fresh_S[:, None], first_S[:, None], l)
    for l in kept.scales
  )
  return kept._replace(scales=scales)


def average_eigenvalues(
  plan: Plan,
  rotated: Split,
  before: Stacks,
  state: Stacks,
  decay: jax.Array | float,
  e: Eigenvalues,
) -> Stacks:
  """l_L <- decay l_L + (1 - decay) mean over columns of G'^2 / l_R; R alike.

  Args:
    plan: Of the gradients.
    rotated: G', in the bases of `state`.
    before: The factors before they saw G.
    state: The factors.
    decay: Share of the old eigenvalues that is kept.
    e: Options.

  Returns:
    The state with new eigenvalues. Where l starts with this gradient, the
    average begins with the next one.
  """
  result = Stacks(state)
  if e.kind != "average":
    return result
  for bucket in plan.buckets:
    kept, x = state[bucket.name], rotated.stacks[bucket.name]
    fresh_S1 = is_fresh(before[bucket.name])[:, None]
    roots = inverse_roots(kept.scales)
    white = scale_sides(x, roots)
    scales = []
    for side, l in enumerate(kept.scales):
      if l is not None:
        powers = _fibre_powers(white, side)
        # A matrix without a gradient keeps its l: an l that had fallen for long
        # would whiten the next gradient by far too much.
        nothing_S1 = ~(jnp.sum(powers, axis=1, keepdims=True) > 0)
        as_before_S1 = fresh_S1 | nothing_S1
        seen = _floored(l) * powers / others(bucket, side, x.dtype)[:, None]
        if e.damping > 0:
          rest = [r for r in _without(roots, side) if r is not None]
          inverse = [
            jnp.mean(jnp.square(r), axis=1, keepdims=True) for r in rest
          ]
          seen = seen + e.damping * math.prod(inverse)
        new = _capped(decay * l + (1 - decay) * seen, e)
        l = jnp.where(as_before_S1, l, new)
      scales.append(l)
    result[bucket.name] = kept._replace(scales=tuple(scales))
  return result


def quotients(
  state: Stacks, correction: jax.Array | float, e: Eigenvalues, precision: str
) -> Stacks:
  """l = diag(Q^T P Q) / correction, for the `kind` of this name."""
  if e.kind == "average":
    return state
  if e.kind == "raw_quotients":
    correction = 1.0
  result = Stacks()
  for name, kept in state.items():
    scales = []
    for p, q, l in zip(kept.factors, kept.derived, kept.scales, strict=True):
      if l is not None:
        p, q = p.astype(l.dtype), q.astype(l.dtype)
        image = jnp.matmul(p, q, precision=precision)
        l = jnp.einsum("sij,sij->sj", q, image, precision=precision)
        l = _capped(l / correction, e)
      scales.append(l)
    result[name] = kept._replace(scales=tuple(scales))
  return result


def carry(
  l: jax.Array | None,
  old: jax.Array,
  new: jax.Array,
  anew: jax.Array | bool,
  precision: str,
) -> jax.Array | None:
  """What l is after a refresh: the same for each column.

  New eigenvectors (`anew`) are not near the old columns, and may have another
  order: l turns as a diagonal then, by the squares of the overlaps.
  """
  if l is None or anew is False:
    return l
  overlap = linalg.squared_overlaps(old, new, precision)
  # A product of matrix and vector would take XLA:CPU long to compile.
  turned = jnp.sum(overlap * l[:, :, None], axis=1)
  return jnp.where(anew, turned, l)


def inverse_roots(scales: Any) -> list[jax.Array | None]:
  """l^(-1/2) of each side, 0 for a matrix that has not started."""

  def root(l):
    l = _floored(l)
    # 0 as the root of infinity: a choice after the root would be compiled into
    # each loop that reads a root.
    return jnp.where(l > 0, l, jnp.inf) ** -0.5

  return [None if l is None else root(l) for l in scales]


def is_fresh(kept: KLKronecker) -> jax.Array:
  """[S]: whose eigenvalues have not started, since no gradient was not 0."""
  present = next(l for l in kept.scales if l is not None)
  # No l is below 0. XLA:CPU compiles a sum faster than a logical reduction.
  return jnp.sum(present, axis=1) == 0


def _floored(l):
  """Raises l to its round-off, n e mean(l): products know no smaller l."""
  share = l.shape[-1] * jnp.finfo(l.dtype).eps
  return jnp.maximum(l, share * jnp.mean(l, axis=-1, keepdims=True))


def _fibre_powers(x, side):
  """Sums of squares over all sides but one, [S, n]."""
  axes = string.ascii_lowercase[: x.ndim - 1]
  # On a CPU a contraction is much faster than a sum over the rows.
  equation = f"z{axes},z{axes}->z{axes[side]}"
  return jnp.einsum(equation, x, x, precision="highest")


def _capped(l, e: Eigenvalues):
  cap = e.largest_inverse_root
  if cap is None:
    return l
  return jnp.maximum(l, (cap(l.shape[-1]) if callable(cap) else cap) ** -2)


def _without(parts, side):
  """The parts of all sides, None for one of them."""
  return [None if s == side else part for s, part in enumerate(parts)]


def scale_sides(x: jax.Array, parts: Any) -> jax.Array:
  """x with each side multiplied by its part [S, n]."""
  for side, part in enumerate(parts):
    if part is not None:
      axes = [1 + s for s in range(x.ndim - 1) if s != side]
      x = x * jnp.expand_dims(part, axes)
  return x
