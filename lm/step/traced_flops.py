"""FLOP of any function of arrays: its matrix products and factorisations."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

# FLOP of an [m, n] matrix, the leading order (Golub and Van Loan, "Matrix
# computations", 4th ed., 5.2 and 8.3).
_FACTORISATIONS: dict[str, Callable[[int, int], float]] = {
  "cholesky": lambda m, n: n**3 / 3,
  "eigh": lambda m, n: 9 * n**3,
  "geqrf": lambda m, n: _reflections(m, n),
  "householder_product": lambda m, n: _reflections(m, n),
  "qr": lambda m, n: 2 * _reflections(m, n),
}


def count(function: Callable[..., Any], *args: Any, of: Any = max) -> float:
  """FLOP of the products and factorisations of a function, for shapes.

  A multiply and an add are two. Scans count each round, other loops one.

  Args:
    function: Of trees of arrays.
    *args: Arrays or shapes.
    of: Which branch of a condition counts: max, the dearest, or min.
  """
  closed = jax.make_jaxpr(function)(*args)
  every = [True] * len(closed.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, every)
  return _count(jaxpr, of)


def _count(jaxpr: Any, of: Callable[..., float]) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    total += _products(eqn, name)
    inner = [
      _count(getattr(x, "jaxpr", x), of)
      for value in eqn.params.values()
      for x in (value if isinstance(value, tuple | list) else (value,))
      if hasattr(getattr(x, "jaxpr", x), "eqns")
    ]
    if inner:
      times = eqn.params["length"] if name == "scan" else 1
      total += times * (of(inner) if name == "cond" else sum(inner))
  return total


def _products(eqn: Any, name: str) -> float:
  """FLOP of a primitive itself."""
  if name == "dot_general":
    (summed, _), _ = eqn.params["dimension_numbers"]
    length = math.prod(eqn.invars[0].aval.shape[i] for i in summed)
    return 2.0 * length * math.prod(eqn.outvars[0].aval.shape)
  if name == "product":  # Of `lm/model/product.py`, an einsum.
    names = eqn.params["equation"].replace("->", ",").split(",")
    sizes: dict[str, int] = {}
    for letters, x in zip(names, [*eqn.invars, *eqn.outvars], strict=True):
      sizes |= zip(letters, x.aval.shape, strict=True)
    return 2.0 * math.prod(sizes.values())
  if name == "triangular_solve":
    rows = eqn.invars[0].aval.shape[-1]
    return 1.0 * rows * math.prod(eqn.invars[1].aval.shape)
  if name not in _FACTORISATIONS:
    return 0.0
  *stack, m, n = eqn.invars[0].aval.shape
  return math.prod(stack) * _FACTORISATIONS[name](m, n)


def _reflections(m: int, n: int) -> float:
  """FLOP of min(m, n) Householder reflections of an [m, n] matrix."""
  k = min(m, n)
  return 4 * m * n * k - 2 * (m + n) * k**2 + 4 / 3 * k**3
