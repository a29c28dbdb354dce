"""An einsum of two arrays whose gradients XLA runs fast on a CPU.

XLA's fast matrix product for the CPU wants the summed axis last in its first
operand. Otherwise XLA copies the operand, or uses a kernel of half the speed.
The gradients that JAX derives put the incoming gradient first, so that the
weight gradient of a layer D -> F transposes the [tokens, F] array. Here the
narrower array comes first. For the feed-forward block of a small model (1024
tokens, D = 256, F = 1024, one core) forward and backward pass take half the
time, the speed of the products alone.

The product is a primitive. In JAX only a primitive can state the transpose of a
bilinear map and keep forward mode and higher derivatives; `custom_vjp` has no
forward mode.
"""

import functools
import string

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .mesh import platform


def product(
  equation: str, x: jax.Array, y: jax.Array, *, out_dtype=None
) -> jax.Array:
  """`jnp.einsum(equation, x, y)`, for an equation that sums no axis of one.

  Args:
    equation: Such as "bld,df->blf"; each letter occurs in two of the three.
    x: First operand.
    y: Second operand, of the same dtype.
    out_dtype: Of the result; None: that of `x`.
  """
  out_dtype = jnp.dtype(out_dtype or x.dtype)
  return product_p.bind(x, y, equation=equation, out_dtype=out_dtype)


def is_weight_product(primitive, *_, **params) -> bool:
  """A rematerialisation policy: save the products that are not batched.

  JAX's `dots_with_no_batch_dims_saveable` does not know this primitive.
  """
  if primitive is not product_p:
    return False
  xs, ys, out = _parse(params["equation"])
  return not set(xs) & set(ys) & set(out)


def _einsum(x, y, *, equation, out_dtype):
  return jnp.einsum(equation, x, y, preferred_element_type=out_dtype)


def _gradient(equation, x, y, out_dtype):
  """An einsum in the order that suits the CPU."""
  if platform() != "cpu":
    return _einsum(x, y, equation=equation, out_dtype=out_dtype)
  xs, ys, out = _parse(equation)
  shared = [c for c in xs if c in ys]
  stack = [c for c in shared if c in out]
  summed = [c for c in shared if c not in out]

  def ends_in_summed(names):
    return set(names[-len(summed) :]) == set(summed)

  if ends_in_summed(xs) == ends_in_summed(ys):
    second_first = y.size < x.size
  else:
    second_first = ends_in_summed(ys)
  if second_first and not (ends_in_summed(xs) and ends_in_summed(ys)):
    x, y, xs, ys = y, x, ys, xs

  def axes(letters):
    return [xs.index(c) for c in letters], [ys.index(c) for c in letters]

  numbers = axes(summed), axes(stack)
  z = jax.lax.dot_general(x, y, numbers, preferred_element_type=out_dtype)
  made = [*stack, *(c for c in xs + ys if c not in shared)]
  if made == list(out):
    return z
  # Without the barrier XLA merges the transposition back into the product.
  z = jax.lax.optimization_barrier(z)
  return z.transpose([made.index(c) for c in out])


def _transpose_x(ct, x, y, *, equation, out_dtype):
  del out_dtype
  xs, ys, out = _parse(equation)
  ct = ct.astype(y.dtype)
  return _gradient(f"{out},{ys}->{xs}", ct, y, x.aval.dtype)


def _transpose_y(ct, x, y, *, equation, out_dtype):
  del out_dtype
  xs, ys, out = _parse(equation)
  ct = ct.astype(x.dtype)
  return _gradient(f"{xs},{out}->{ys}", x, ct, y.aval.dtype)


def _batch(args, axes, *, equation, out_dtype):
  new = next(c for c in string.ascii_letters if c not in equation)
  operands, names = [], []
  for x, axis, letters in zip(args, axes, _parse(equation)[:2], strict=True):
    mapped = axis is not None
    operands.append(jnp.moveaxis(x, axis, 0) if mapped else x)
    names.append(new + letters if mapped else letters)
  equation = f"{names[0]},{names[1]}->{new}{_parse(equation)[2]}"
  return product(equation, *operands, out_dtype=out_dtype), 0


def _abstract(x, y, **params):
  out = jax.eval_shape(functools.partial(_einsum, **params), x, y)
  return jax.core.ShapedArray(out.shape, out.dtype)


def _parse(equation):
  operands, out = equation.split("->")
  return *operands.split(","), out


product_p = Primitive("product")
product_p.def_impl(jax.jit(_einsum, static_argnames=("equation", "out_dtype")))
product_p.def_abstract_eval(_abstract)
mlir.register_lowering(
  product_p, mlir.lower_fun(_einsum, multiple_results=False)
)
ad.defbilinear(product_p, _transpose_x, _transpose_y)
batching.primitive_batchers[product_p] = _batch
