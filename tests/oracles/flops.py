"""Matrix products counted in a jaxpr, after dead code is gone."""

import jax
import numpy as np
from jax.interpreters import partial_eval


def matmul_flops(function, *args):
  """2 m n k of every product that the result needs, scans unrolled."""
  closed = jax.make_jaxpr(function)(*args)
  jaxpr, _ = partial_eval.dce_jaxpr(
    closed.jaxpr, [True] * len(closed.jaxpr.outvars)
  )
  return _flops(jaxpr)


def _flops(jaxpr):
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      size = np.prod([shape[i] for i in contracted])
      total += 2 * size * np.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "product":  # Of `lm`: an einsum.
      letters = {}
      names = eqn.params["equation"].replace("->", ",").split(",")
      for name, v in zip(names, [*eqn.invars, *eqn.outvars], strict=True):
        letters |= dict(zip(name, v.aval.shape, strict=True))
      total += 2 * np.prod(list(letters.values()))
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for value in eqn.params.values():
      for sub in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(sub, "jaxpr", sub)
        if hasattr(inner, "eqns"):
          total += times * _flops(inner)
  return total
