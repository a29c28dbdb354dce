"""The weights to evaluate: a method's own point, or an average, by its name.

`optim.eval_params` computes the weights from the optimiser's state. This file
compiles the computation, and finds out which leaves of the state it needs. So a
program that only evaluates reads no other leaves from a checkpoint.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import optim

from .parts import Parts
from .state import TrainState


class Point(NamedTuple):
  """Weights to evaluate, as a function of a few leaves of a state.

  Attributes:
    reads: Whether it needs each leaf of the optimiser's state, in their order.
      If it needs none, the point is the parameters.
    compute: (those leaves, parameters) -> weights like the parameters.
  """

  reads: tuple[bool, ...]
  compute: Callable[[list[Any], Any], Any]


def names(parts: Parts) -> tuple[str, ...]:
  """Names of the averages that a run keeps."""
  return optim.eval_names(parts.abstract_state.opt_state)


def find(parts: Parts, name: str | None = None) -> Point:
  """A point of a run.

  Args:
    parts: Of the run.
    name: One of `names`; None is the method's own point.

  Raises:
    ValueError: If the run has no average of this name.
  """
  state = parts.abstract_state
  leaves, treedef = jax.tree.flatten(state.opt_state)

  def whole(leaves, params):
    return optim.eval_params(treedef.unflatten(leaves), params, name)

  traced = jax.make_jaxpr(whole)(leaves, state.params).jaxpr
  used = {id(v) for e in traced.eqns for v in e.invars}
  used |= {id(v) for v in traced.outvars}
  reads = tuple(id(v) in used for v in traced.invars[: len(leaves)])

  def compute(some, params):
    given = iter(some)
    filled = [
      next(given) if read else leaf
      for read, leaf in zip(reads, leaves, strict=True)
    ]
    return whole(filled, params)

  return Point(reads, compute)


def compiled(
  parts: Parts, name: str | None = None
) -> Callable[[TrainState], Any]:
  """`find` as a compiled function of a state; the state is not donated."""
  point = find(parts, name)
  if not any(point.reads):
    return lambda state: state.params

  def read(tree):
    leaves = jax.tree.leaves(tree)
    return [x for x, r in zip(leaves, point.reads, strict=True) if r]

  abstract, lies = parts.abstract_state, parts.shardings
  jitted = jax.jit(
    point.compute,
    in_shardings=(read(lies.opt_state), lies.params),
    out_shardings=lies.params,
  )
  compute = jitted.lower(read(abstract.opt_state), abstract.params).compile()
  return lambda state: compute(read(state.opt_state), state.params)
