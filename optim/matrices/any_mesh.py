"""Transforms of stacks on meshes with Explicit axes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from ..common import meshes
from .placement import Placement, state_specs


def on_any_mesh(
  build: Callable[[Any], optax.GradientTransformationExtraArgs],
) -> Callable[[Any], optax.GradientTransformationExtraArgs]:
  """Makes a transform of stacks right on meshes with Explicit axes, too.

  There `init` and `update` run as on Auto axes (`meshes.in_auto_mode`). The
  updates lie as the gradients do, and a state stays where it is. A new state
  lies as `state_specs` says of the options' `placement`, and as the parameters
  themselves.

  Args:
    build: Options, a frozen dataclass, -> transform. Its `update` must not
      need `params`.

  Returns:
    A function like `build`.
  """

  @functools.wraps(build)
  def built(o: Any) -> optax.GradientTransformationExtraArgs:
    tx = build(o)
    values = {f.name: getattr(o, f.name) for f in dataclasses.fields(o)}
    # Of `optax.inject_hyperparams`: their types must change with all others.
    arrays = {k: x for k, x in values.items() if isinstance(x, jax.Array)}

    def rebuilt(arrays):
      return build(dataclasses.replace(o, **arrays)) if arrays else tx

    def init_fn(params):
      def place(state, mesh):
        return _state_layouts(state, mesh, params, o)

      def init(arrays, params):
        return rebuilt(arrays).init(params)

      if meshes.explicit_mesh(params) is None:
        return tx.init(params)
      return meshes.in_auto_mode(init, arrays, params, out=place)

    def update_fn(updates, state, params=None, **extra_args):
      def place(result, mesh):
        del result
        return meshes.layouts((updates, state), mesh)

      def update(arrays, updates, state, extra_args):
        return rebuilt(arrays).update(updates, state, None, **extra_args)

      if meshes.explicit_mesh(updates) is None:
        return tx.update(updates, state, params, **extra_args)
      return meshes.in_auto_mode(
        update, arrays, updates, state, extra_args, out=place
      )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  return built


def _state_layouts(state, mesh, params, o) -> Any:
  """Where a new state lies on a mesh with Explicit axes."""
  own = jax.tree.map(lambda x: x.spec, meshes.layouts(params, mesh))
  placement = getattr(o, "placement", Placement())
  specs = state_specs(state, placement._replace(param_specs=own))
  return jax.tree.map(
    lambda x, spec: meshes.explicit_part(spec, x.shape, mesh), state, specs
  )
