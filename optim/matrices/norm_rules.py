"""Rules for the norms of weights: spheres, brakes, fixed radii.

A rule sees weights W, a direction of ascent U and a learning rate eta. It gives
another direction V and a norm n. The new weights are W - eta V, with the norm n
if there is one. Norms are Frobenius norms, one for each matrix: a stack of
layers has one norm a layer, and a matrix that the direction cuts into blocks
has one norm for the whole matrix. A rule sees leaves as they are, not stacks:
so norms need one reduction, wherever a leaf lies on a mesh.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks


class Matrices(NamedTuple):
  """What a rule sees of a leaf: one matrix, or a stack of matrices.

  Attributes:
    w: Weights.
    u: Direction of ascent, like `w`.
    rate: eta.
    radius: Norm of each matrix at `init`; of the shape of `norm(w)`.
    sides: Axes of a matrix.
    inputs: Axes of a matrix without the axes of the outputs.
  """

  w: jax.Array
  u: jax.Array
  rate: Any
  radius: jax.Array
  sides: tuple[int, ...]
  inputs: tuple[int, ...]

  def norm(self, x: jax.Array, *, rows: bool = False) -> jax.Array:
    """Norm of each matrix, or of the weights of each output; to multiply x."""
    axes = self.inputs if rows else self.sides
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

  def dot(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """<x, y> of each matrix."""
    return jnp.sum(x * y, axis=self.sides, keepdims=True)

  def resized(self, x: jax.Array, norm: Any) -> jax.Array:
    """The matrices x with another norm; a matrix of zeros stays."""
    return x * _ratio(norm, self.norm(x))


# -> the direction V and the norm n of the new weights; None: W - eta V's own.
Rule = Callable[[Matrices], tuple[jax.Array, Any]]


def step(m: Matrices, rule: Rule) -> tuple[jax.Array, jax.Array]:
  """The new weights by a rule, and V; a rate of 0 moves nothing."""
  v, norm = rule(m)
  x = m.w - m.rate * v
  if norm is not None:
    x = jnp.where(m.rate == 0, m.w, m.resized(x, norm))
  return x, v


def hyperball(m: Matrices) -> tuple[jax.Array, Any]:
  """V = U R / ||U||, n = R, with R the norm that W had at `init`.

  The angle of a step is about eta, for every matrix and width.

  Args:
    m: W, U, eta and R of the matrices of a leaf.

  Returns:
    V and n.
  """
  return m.resized(m.u, m.radius), m.radius


def fixed_radius(radius: float) -> Rule:
  """`hyperball` with one norm R for all matrices.

  Args:
    radius: R, in units of the weights.

  Returns:
    A rule for `on_sphere`.
  """
  checks.positive("radius", radius)
  return lambda m: (m.resized(m.u, radius), radius)


def relative_step(m: Matrices) -> tuple[jax.Array, Any]:
  """V = U ||W|| / ||U||: eta is the relative length of a step.

  Args:
    m: W, U and eta of the matrices of a leaf.

  Returns:
    V, and None: the norm is what it comes to be.
  """
  return m.resized(m.u, m.norm(m.w)), None


def radial_brake(outward: float = 0.5, inward: float = 1.0) -> Rule:
  """V = U, and a slower norm: n = ||W|| + s (||W - eta U|| - ||W||).

  Args:
    outward: s where the norm grows, >= 0. Default of the authors.
    inward: s where the norm falls, >= 0. Default of the authors.

  Returns:
    A rule for `on_sphere`.
  """
  for name, value in dict(outward=outward, inward=inward).items():
    checks.positive(name, value, zero_too=True)

  def rule(m: Matrices) -> tuple[jax.Array, Any]:
    old, new = m.norm(m.w), m.norm(m.w - m.rate * m.u)
    return m.u, old + jnp.where(new > old, outward, inward) * (new - old)

  return rule


def norm_control(
  outward: float = 0.5,
  floor: float = 0.3825,
  floor_of: Literal["matrix", "rows"] = "matrix",
) -> Rule:
  """The speed run's control of norms.

  V is U with its radial part <U, W> / <W, W> W multiplied by `outward` where
  the step would lengthen W. V is lengthened to `floor` ||W|| if V is shorter.
  n = ||W|| - eta <V, W> / ||W||: what V does across W does not lengthen W.

  Args:
    outward: Factor of the radial part, in [0, 1]. Default of the record.
    floor: Least ||V|| / ||W||, >= 0. Default of the record.
    floor_of: "matrix", or "rows": the floor holds for the weights of each
      output.

  Returns:
    A rule for `on_sphere`.
  """
  checks.positive("outward", outward, zero_too=True)
  checks.positive("floor", floor, zero_too=True)
  checks.choice("floor_of", floor_of, ("matrix", "rows"))
  rows = floor_of == "rows"

  def rule(m: Matrices) -> tuple[jax.Array, Any]:
    radial = _ratio(m.dot(m.u, m.w), m.dot(m.w, m.w))
    v = m.u - jnp.where(radial < 0, (1 - outward) * radial, 0) * m.w
    least = floor * m.norm(m.w, rows=rows)
    v = v * jnp.maximum(1, _ratio(least, m.norm(v, rows=rows)))
    length = m.norm(m.w)
    return v, length - m.rate * _ratio(m.dot(v, m.w), length)

  return rule


# By the names that a configuration has for them.
RULES: dict[str, Rule] = {
  "hyperball": hyperball,
  "relative": relative_step,
  "brake": radial_brake(),
  "record": norm_control(),
  "record_rows": norm_control(floor_of="rows"),
}


def _ratio(a, b):
  """a / b, and 0 where b is 0."""
  some = b > 0
  return jnp.where(some, a / jnp.where(some, b, 1), 0)
