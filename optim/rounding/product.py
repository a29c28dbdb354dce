"""Products of two arrays whose operands are rounded, by slot.

    Y = fn(X_y, W_y)      dX = fn'(., W_dx) G_dx      dW = fn'(X_dw, .) G_dw

An operand of a slot is rounded in blocks along the innermost axis that its
product sums; other axes are untouched, so nothing is transposed or reshaped.
Rounding has no gradient of its own: gradients pass as if it were the identity.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import draws
from .round import round_by, round_nearest
from .slots import PRODUCTS, SLOTS, Slots

ROTATION = 16
# A random pattern, drawn once.
SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_USES = {"x": 1, "w": 2, "g": 3}  # Of random bits.
_SECOND = ("x_dw", "w_dx", "g_dw")  # The upper half of an operand's bits.


class Axes(NamedTuple):
  """The innermost axis that its product sums, for each slot; None: none is."""

  x_y: int | None
  w_y: int | None
  g_dx: int | None
  w_dx: int | None
  x_dw: int | None
  g_dw: int | None


class _Seeds(NamedTuple):
  """Seeds of random rounding: of W, and of X and G; None: nothing is drawn."""

  update: jax.Array | None
  rows: jax.Array | None

  def bits(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    """16 random bits for each element of a slot's operand."""
    seed = self.update if name[0] == "w" else self.rows
    assert seed is not None
    words = draws.words(seed, shape, _USES[name[0]])
    half = words >> 16 if name in _SECOND else words & 0xFFFF
    return half.astype(jnp.uint16)


def quantized_product(
  fn: Callable[[jax.Array, jax.Array], jax.Array], slots: Slots, axes: Axes
) -> Callable[..., jax.Array]:
  """A bilinear function with rounded operands, forward and backward.

  Without slots of G the product has a `custom_jvp`, so it works in forward
  mode and Gauss-Newton products. Rounding G is what only reverse mode can do:
  then the product has a `custom_vjp`, and forward mode raises JAX's TypeError.

  Args:
    fn: (X, W) -> Y, linear in each. A transpose that fn defines is kept.
    slots: What is rounded how.
    axes: The axis of each slot's operand that is cut into blocks.

  Returns:
    (X, W, key=None, row_keys=None) -> Y. Slots with `random` need `key`, a key
    of `jax.random`. `row_keys` [B], in place of it for X and G, whose first
    axis is B then: draws of a row depend on its own key only.

  Raises:
    ValueError: For a slot whose product sums no axis; when called, for a slot
      that needs a key, or for a rotated axis that 16 does not divide.
  """
  for name in SLOTS:
    if getattr(slots, name) and getattr(axes, name) is None:
      raise ValueError(
        f"{name}={getattr(slots, name)} must be None: its product sums no axis "
        "that blocks could lie along."
      )
  rounded = functools.partial(_rounded, slots, axes)

  def forward(x, w, seeds):
    return fn(rounded("x_y", x, seeds), rounded("w_y", w, seeds))

  def backward_operands(x, w, seeds):
    if slots.backward_from == "rounded":
      x, w = rounded("x_y", x, seeds), rounded("w_y", w, seeds)
    return rounded("x_dw", x, seeds), rounded("w_dx", w, seeds)

  def jvp(primals, tangents):
    x_dw, w_dx = backward_operands(*primals)
    y_dot = fn(tangents[0], w_dx) + fn(x_dw, tangents[1])
    return product(*primals), y_dot  # Not `forward`: it has no gradient.

  def fwd(x, w, seeds):
    return forward(x, w, seeds), (x, w, seeds)

  def bwd(saved, g):
    x, w, seeds = saved
    x_dw, w_dx = backward_operands(x, w, seeds)
    g_dx, g_dw = (rounded(name, g, seeds) for name in ("g_dx", "g_dw"))
    (dx,) = jax.linear_transpose(lambda x: fn(x, w_dx), x)(g_dx)
    (dw,) = jax.linear_transpose(lambda w: fn(x_dw, w), w)(g_dw)
    return dx, dw, None

  if slots.g_dx or slots.g_dw or set(slots.rotate) & {"dx", "dw"}:
    product: Any = jax.custom_vjp(forward)
    product.defvjp(fwd, bwd)
  else:
    product = jax.custom_jvp(forward)
    product.defjvp(jvp)

  def call(x, w, key=None, row_keys=None):
    if slots == Slots():
      return fn(x, w)
    return product(x, w, _seeds(slots, key, row_keys))

  return call


def quantized_einsum(
  equation: str,
  x: jax.Array,
  w: jax.Array,
  slots: Slots,
  key: jax.Array | None = None,
  row_keys: jax.Array | None = None,
  *,
  einsum: Callable[..., jax.Array] = jnp.einsum,
) -> jax.Array:
  """`jnp.einsum(equation, x, w)` with rounded operands.

  Args:
    equation: Of two operands; each letter occurs in two of its three parts, or
      in all.
    x: Activations, X of the slots.
    w: Weights, W of the slots, or activations.
    slots: What is rounded how.
    key: See `quantized_product`.
    row_keys: See `quantized_product`.
    einsum: (equation, x, w) -> Y, in place of `jnp.einsum`.

  Raises:
    ValueError: For another equation, and as for `quantized_product`.
  """
  fn = functools.partial(einsum, equation)
  product = quantized_product(fn, slots, equation_axes(equation))
  return product(x, w, key, row_keys)


def equation_axes(equation: str) -> Axes:
  """The axes of blocks for an einsum of two arrays.

  Args:
    equation: As of `quantized_einsum`.

  Raises:
    ValueError: For another equation.
  """
  parts = equation.replace(" ", "").replace("->", ",").split(",")
  letters = "".join(parts)
  plain = len(parts) == 3 and letters.isalpha() and "->" in equation
  plain = plain and all(len({*part}) == len(part) for part in parts)
  if not plain or any(letters.count(c) < 2 for c in letters):
    raise ValueError(
      f"equation={equation!r} must be of two arrays, such as 'bld,df->blf', "
      "each letter at most once in a part and in two parts at least."
    )
  x, w, y = parts

  def places(one, other, result):
    """Of the last letter of one that the product with the other sums."""
    summed = [c for c in one if c in other and c not in result]
    return (one.index(summed[-1]), other.index(summed[-1])) if summed else None

  (x_y, w_y), (g_dx, w_dx), (x_dw, g_dw) = (
    places(*order) or (None, None)
    for order in ((x, w, y), (y, w, x), (x, y, w))
  )
  return Axes(x_y, w_y, g_dx, w_dx, x_dw, g_dw)


def quantized_dot_general(
  slots: Slots, key: jax.Array | None = None
) -> Callable[..., jax.Array]:
  """`jax.lax.dot_general` with rounded operands, e.g. for Flax's layers.

      flax.linen.Dense(64, dot_general=optim.quantized_dot_general(slots))

  The first operand is X and the second W, as Flax's layers have them.

  Args:
    slots: What is rounded how.
    key: See `quantized_product`; all calls draw with it.

  Raises:
    ValueError: As for `quantized_product`, when called.
  """

  def dot_general(lhs, rhs, dimension_numbers, precision=None, **options):
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    x = [next(letters) for _ in lhs.shape]
    w = [next(letters) for _ in rhs.shape]
    (x_sum, w_sum), (x_batch, w_batch) = dimension_numbers
    for i, j in zip((*x_sum, *x_batch), (*w_sum, *w_batch), strict=True):
      w[j] = x[i]
    batch = [x[i] for i in x_batch]
    summed = {x[i] for i in x_sum}
    free = [c for c in x + w if c not in batch and c not in summed]
    axes = equation_axes(f"{''.join(x)},{''.join(w)}->{''.join(batch + free)}")

    def fn(x, w):
      return jax.lax.dot_general(
        x, w, dimension_numbers, precision=precision, **options
      )

    return quantized_product(fn, slots, axes)(lhs, rhs, key)

  return dot_general


def hadamard(
  size: int = ROTATION, signs: tuple[int, ...] | None = None
) -> np.ndarray:
  """An orthogonal matrix of entries +- size^-1/2, float32 [size, size].

  Row i is multiplied by signs[i]. A rounded product whose operands are both
  multiplied by it spreads large elements over 16 neighbours.

  Args:
    size: A power of two.
    signs: +1 or -1 by row; None: +1.

  Raises:
    ValueError: If the size is no power of two, or the signs are not that many.
  """
  if size < 1 or size & (size - 1):
    raise ValueError(f"size={size} must be a power of two, e.g. 16.")
  signs = (1,) * size if signs is None else signs
  if len(signs) != size or {*signs} - {1, -1}:
    raise ValueError(f"signs={signs} must be {size} numbers 1 or -1.")
  matrix = np.ones((1, 1), np.float32)
  while len(matrix) < size:
    matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
  return matrix * np.array(signs, np.float32)[:, None] / np.float32(size**0.5)


def rotated(x: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
  """Multiplies each run of len(matrix) elements along an axis by a matrix."""
  size, length = len(matrix), x.shape[axis]
  if length % size:
    raise ValueError(
      f"axis {axis} of an operand of shape {x.shape} cannot be rotated: {size} "
      "does not divide it; leave `rotate` empty for this product."
    )
  axis %= x.ndim
  runs = x.reshape(*x.shape[:axis], length // size, size, *x.shape[axis + 1 :])
  rows = np.expand_dims(matrix, [*range(2, 1 + x.ndim - axis)])
  # One after the other, as in a matrix product: the sum has its bits.
  terms = (
    jax.lax.slice_in_dim(runs, i, i + 1, axis=axis + 1)
    * jnp.asarray(rows[i], x.dtype)
    for i in range(size)
  )
  return functools.reduce(jnp.add, terms).reshape(x.shape)


def _rounded(slots, axes, name, operand, seeds):
  """The operand of a slot, in its own dtype."""
  (product,) = (key for key, names in PRODUCTS.items() if name in names)
  axis, slot = getattr(axes, name), getattr(slots, name)
  if product in slots.rotate and axis is not None:
    operand = rotated(operand, axis, hadamard(ROTATION, SIGNS))
  if slot is None:
    return operand
  if slot.square:
    other = next(s for s in SLOTS if s[0] == name[0] and s != name)
    if getattr(axes, other) is None:
      raise ValueError(f"{name}: square blocks need two axes that are summed.")
    axis = axis, getattr(axes, other)
  quantizer = slot.quantizer(axis)
  if slot.random:
    bits = seeds.bits(name, operand.shape)
    return round_by(bits, operand, quantizer).astype(operand.dtype)
  return round_nearest(operand, quantizer).astype(operand.dtype)


def _seeds(slots: Slots, key, row_keys) -> _Seeds:
  """Seeds of what the slots draw, or an error that names a slot."""
  update = rows = None
  for name in slots.random:
    given = row_keys if name[0] != "w" and row_keys is not None else key
    if given is None:
      raise ValueError(
        f"{name} is rounded at random and needs a key of jax.random, e.g. "
        "key=jax.random.key(0); a new one for every call."
      )
    if name[0] == "w":
      update = draws.seeds(given)
    else:
      rows = draws.seeds(given)
  return _Seeds(update, rows)
