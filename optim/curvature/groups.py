"""Local models of groups of parameters, each with all other groups held fixed.

    z ~ z_0 + J_l d_l,    gradient J_l^T (g + H J_l d_l)

The groups share one forward pass and its intermediate results. For each group,
only the part of the linear map J that the group reaches is computed: the part
from the group's first layer on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..common.tree import is_function, upcast
from . import local_model
from .local_model import Mode, Sums

Groups = dict[str, tuple[int, ...]]  # Label -> indices of its leaves.
Scope = str | Callable[[Any], Any] | Any


def label_tree(scope: Scope, params: Any) -> Any | None:
  """Returns the labels that a scope gives to params; None for "full".

  Raises:
    ValueError: If a leaf has no label or several labels.
  """
  if isinstance(scope, str):
    if scope != "full":
      raise ValueError(
        f"scope={scope!r} is not known; take 'full', or a function of params "
        "that makes a tree of labels, e.g. one that calls optim.path_groups."
      )
    return None
  labels = scope(params) if is_function(scope) else scope
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  try:
    found = treedef.flatten_up_to(labels)
  except ValueError as error:
    raise ValueError(
      f"scope must give a tree of labels like params: {error}"
    ) from error
  for (path, _), label in zip(leaves, found, strict=True):
    if not isinstance(label, str):
      many = isinstance(label, (tuple, list, set)) and len(label) > 1
      problem = "several labels" if many else "no label"
      raise ValueError(
        f"scope gives {problem} to params{jax.tree_util.keystr(path)}: "
        f"{label!r}. Each leaf needs exactly one, a string; see "
        "optim.path_groups."
      )
  return jax.tree.unflatten(treedef, found)


def find_groups(labels: Any) -> Groups:
  """{label: indices of its leaves}, sorted by label as JAX sorts dicts."""
  groups: dict[str, list[int]] = {}
  for index, label in enumerate(jax.tree.leaves(labels)):
    groups.setdefault(label, []).append(index)
  return {label: tuple(groups[label]) for label in sorted(groups)}


def num_groups(scope: Scope, params: Any) -> int:
  """The number K of groups of a scope; 1 for "full"."""
  labels = label_tree(scope, params)
  return 1 if labels is None else max(1, len(find_groups(labels)))


def scoped_sums(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  delta: Any,
  batch: Any,
  mode: Mode,
  scope: Scope = "full",
  axis: str | None = None,
) -> Sums:
  """`local_model.local_sums` for "full", else sums of the groups' own models.

  The value is the mean over the groups. The gradient of a leaf is the gradient
  of its group's model. The devices along `axis` share the groups out.
  """
  labels = label_tree(scope, params)
  if labels is None and axis is not None:
    raise ValueError(
      f"group_axis={axis!r} shares groups out, and scope='full' has none; take "
      "group_axis=None."
    )
  if labels is None:
    return local_model.local_sums(model_fn, loss_fn, params, delta, batch, mode)
  solve = _nonlinear if mode == "nonlinear" else _linear
  parts = list(find_groups(labels).values())

  def some(which: Sequence[tuple[int, ...]], args):
    params, delta, batch = args
    values, weight, found = solve(
      model_fn, loss_fn, params, delta, batch, mode, which
    )
    leaves, treedef = jax.tree.flatten(upcast(params))
    grads = [found.get(i, jnp.zeros_like(p)) for i, p in enumerate(leaves)]
    # Each device knows the weight; its share makes the sum over devices right.
    share = len(which) / len(parts)
    value: Any = sum(values, jnp.zeros_like(weight)) / len(parts)
    return Sums((value,), weight * share, jax.tree.unflatten(treedef, grads))

  args = params, delta, batch
  if axis is None:
    return some(parts, args)
  return _shared_out(some, parts, args, axis)


def _shared_out(some, parts, args, axis):
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or axis not in mesh.axis_names:
    raise ValueError(
      f"group_axis={axis!r} is no axis of the mesh {mesh.axis_names}; call "
      "under jax.set_mesh, or leave group_axis=None."
    )
  count = mesh.shape[axis]

  def local(*args):
    # More devices than groups: the last ones have nothing to do.
    branches = [
      lambda args, k=k: some(parts[k::count], args) for k in range(count)
    ]
    mine = jax.lax.switch(jax.lax.axis_index(axis), branches, args)
    return jax.tree.map(lambda x: jax.lax.psum(x, axis), mine)

  whole = jax.tree.map(lambda _: PartitionSpec(), args)
  spread = jax.shard_map(
    local,
    in_specs=whole,
    out_specs=PartitionSpec(),
    axis_names={axis},
    check_vma=False,
  )
  return spread(*args)


def _linear(model_fn, loss_fn, params, delta, batch, mode, groups):
  """(values, weight, {leaf: gradient}) of the groups, linearised once."""
  body_fn, head = local_model.parts(model_fn)
  leaves, treedef = jax.tree.flatten(params)
  steps = jax.tree.leaves(delta)
  indices = jax.tree.unflatten(treedef, range(len(leaves)))
  of_head = set() if head is None else set(jax.tree.leaves(head.take(indices)))
  with local_model.explained_forward_mode():
    outputs, push = jax.linearize(lambda p: body_fn(p, batch), params)
  values, weight, found = [], jnp.zeros(()), {}
  for group in groups or [()]:

    def along(part, group=group):
      tree = [jnp.zeros_like(p) for p in leaves]
      for i, x in zip(group, part, strict=True):
        tree[i] = x
      return push(jax.tree.unflatten(treedef, tree))

    zeros = [jnp.zeros_like(leaves[i]) for i in group]
    part = [steps[i].astype(leaves[i].dtype) for i in group]
    # Derivatives of a linear map are the map itself, without what does not
    # depend on the group; the values at zero are dead code.
    with local_model.explained_forward_mode():
      _, u = jax.jvp(along, (zeros,), (part,))
    _, pull = jax.vjp(along, zeros)
    own = [
      d.astype(p.dtype) if i in group else jnp.zeros_like(p)
      for i, (d, p) in enumerate(zip(steps, leaves, strict=True))
    ]
    value, weight, ct, ct_head = local_model.head_sums(
      model_fn,
      loss_fn,
      params,
      jax.tree.unflatten(treedef, own),
      batch,
      outputs,
      u,
      local_model.RULES[mode],
      True,
      head_moves=bool(of_head & set(group)),
    )
    values.append(value[0])
    (grads,) = pull(ct)
    found |= dict(zip(group, upcast(grads), strict=True))
    if ct_head is not None:
      head_indices = jax.tree.leaves(head.take(indices))
      for i, x in zip(head_indices, jax.tree.leaves(ct_head), strict=True):
        if i in group:
          found[i] = found[i] + x
  return (values if groups else []), weight, found


def _nonlinear(model_fn, loss_fn, params, delta, batch, mode, groups):
  """`_linear` for the loss itself; gradients of other groups are not used."""
  leaves, treedef = jax.tree.flatten(params)
  steps = jax.tree.leaves(delta)
  values, weight, found = [], jnp.zeros(()), {}
  for group in groups or [()]:
    own = [d if i in group else jnp.zeros_like(d) for i, d in enumerate(steps)]
    total = local_model.local_sums(
      model_fn, loss_fn, params, jax.tree.unflatten(treedef, own), batch, mode
    )
    values.append(total.values[0])
    weight = total.weight
    grads = jax.tree.leaves(total.grad)
    found |= {i: grads[i] for i in group}
  return (values if groups else []), weight, found
