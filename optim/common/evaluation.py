"""The point that a method wants evaluated, found in its state by type.

Most methods are evaluated at the parameters. An average of the weights, or a
method such as Schedule-Free, has another point in its state. A module that
defines such a state registers a reader for the state's type; `eval_params`
finds states of known types anywhere: in a chain, `optax.masked`,
`optax.partition`, `optax.inject_hyperparams`, `optax.MultiSteps`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax.contrib

from .tree import by_path, like


class Reader(NamedTuple):
  """How the points of one type of state are read.

  Attributes:
    names: state -> names of its averages.
    read: (state, name) -> function of params, or None if the state has no point
      of this name. The name None is the method's own point. The function takes
      a tree like params and returns a tree of the same dtypes. Under a mask
      both trees have only the leaves that the state has.
    tree: state -> a tree like params; under a mask, without the masked leaves.
  """

  names: Callable[[Any], tuple[str, ...]]
  read: Callable[[Any, str | None], Callable[[Any], Any] | None]
  tree: Callable[[Any], Any]


_READERS: dict[type, Reader] = {}


def register(kind: type, reader: Reader) -> None:
  """Makes the points of states of a type known to `eval_params`.

  Call it once, in the file that defines the type.
  """
  _READERS[kind] = reader


def eval_params(opt_state: Any, params: Any, name: str | None = None) -> Any:
  """Returns the weights to evaluate: the method's own point, or an average.

  Args:
    opt_state: State of any optimiser, wrapped in any way.
    params: The parameters that the state belongs to.
    name: None is the point that the method itself wants evaluated, which is x
      for Schedule-Free. A string is the name of an average that the state
      keeps: one of `eval_names(opt_state)`, e.g. "ema:0.99".

  Returns:
    A tree like params, with the dtypes of params. A leaf is taken from params
    if no state has the point for that leaf, as under `optax.masked` or
    `optax.partition`. For None, all leaves are taken from params if the method
    has no point of its own.

  Raises:
    ValueError: If the state has no average of this name, or if two states have
      the point for the same leaf.
  """
  if name is not None and name not in eval_names(opt_state):
    known = ", ".join(map(repr, eval_names(opt_state))) or "no average at all"
    raise ValueError(
      f"name={name!r} is no average of this state, which has {known}. Wrap the "
      "optimiser in optim.average_weights, or take name=None."
    )
  leaves = by_path(params)
  found: dict[str, Any] = {}
  for state, reader in _known_states(opt_state):
    read = reader.read(state, name)
    if read is None:
      continue
    own = _matching(reader.tree(state), leaves)
    for path, leaf in by_path(read(own)).items():
      if path in found:
        raise ValueError(
          f"name={name!r} has two points for leaf {path}: two states of the "
          "optimiser keep one. Keep one of them, or give the averages "
          "different names."
        )
      found[path] = leaf
  values = [found.get(path, leaf) for path, leaf in leaves.items()]
  return jax.tree.unflatten(jax.tree.structure(params), values)


def eval_names(opt_state: Any) -> tuple[str, ...]:
  """Returns the names of the averages that a state keeps, for `eval_params`.

  Args:
    opt_state: State of any optimiser, wrapped in any way.

  Returns:
    Each name once, in the order in which the state has them.
  """
  names = [
    name
    for state, reader in _known_states(opt_state)
    for name in reader.names(state)
  ]
  return tuple(dict.fromkeys(names))


def keeps_a_point(opt_state: Any) -> bool:
  """Whether a state, wrapped in any way, has points for `eval_params`."""
  return next(_known_states(opt_state), None) is not None


def _known_states(tree: Any) -> Iterator[tuple[Any, Reader]]:
  """Yields all nodes of registered types, outer nodes first."""
  kinds = tuple(_READERS)
  inside = lambda x, node: x is not node and isinstance(x, kinds)  # noqa: E731

  def visit(node):
    for child in jax.tree.leaves(
      node, is_leaf=functools.partial(inside, node=node)
    ):
      if isinstance(child, kinds):
        yield child, _READERS[type(child)]
        yield from visit(child)

  if isinstance(tree, kinds):
    yield tree, _READERS[type(tree)]
  yield from visit(tree)


def _matching(tree: Any, leaves: dict[str, Any]) -> Any:
  """The parameters at the paths of a state's tree."""
  paths = list(by_path(tree))
  missing = [path for path in paths if path not in leaves]
  if missing:
    raise ValueError(
      f"params have no leaf {missing[0]}, but opt_state has a point for it; "
      "pass the parameters that the optimiser was initialised with. Leaves of "
      f"params: {list(leaves)[:8]}."
    )
  own = [jnp.asarray(leaves[path]) for path in paths]
  return jax.tree.unflatten(jax.tree.structure(tree), own)


def _schedule_free(state: Any, name: str | None) -> Any:
  """x of y = b1 x + (1 - b1) z, where y are the parameters."""
  if name is not None:
    return None
  x = optax.contrib.schedule_free_eval_params
  return lambda params: like(x(state, params), params)


# A type of optax has no file here that defines it.
register(
  optax.contrib.ScheduleFreeState,
  Reader(lambda state: (), _schedule_free, lambda state: state.z),
)
