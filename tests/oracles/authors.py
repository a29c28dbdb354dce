"""Trajectories of our transforms from the settings of the authors' runs.

`run(npz, case, run)` goes the whole way from a case of a file such as
`golden/zoo.npz` to our transform and its trajectory. The settings of a case
have the authors' names; the modules `authors_*` say for each method which of
our arguments they are.

A file has trees of small leaves, 40 gradients of each tree ("open" runs), a
regression whose gradient is taken at the current parameters ("closed" runs),
and settings. A `Layout` says how the leaves, which are torch's matrices
[outputs, inputs], are shown to a transform.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracles import (
  authors_accelerated,
  authors_muon,
  authors_sgd,
  authors_soap,
  authors_soap_muon,
)
from oracles.authors_built import Built, Moment, Setup

import optim

_MODULES = (
  authors_sgd,
  authors_accelerated,
  authors_muon,
  authors_soap,
  authors_soap_muon,
)
# {method: builder}.
METHODS: dict[str, Callable[[Setup], Built]] = {
  name: build for module in _MODULES for name, build in module.METHODS.items()
}
# {case: other layouts in which the trajectory is the same}; see `run`.
LAYOUTS: dict[str, tuple[str, ...]] = {
  case: layouts
  for module in _MODULES
  for case, layouts in module.LAYOUTS.items()
}


def run(npz: Any, case: str, run: str, layout: str = "torch") -> np.ndarray:
  """The trajectory of our transform with the settings of a case.

  Args:
    npz: A file of the format of `golden/zoo.npz`.
    case: Of the file.
    run: open32, closed32, open64 or closed64, or one of these with `_average`:
      the point to evaluate in place of the parameters.
    layout: How matrices are shown to the transform: "torch" [outputs, inputs];
      "kernels" [inputs, outputs]; "stacked", each as the second of two of a
      leaf [2, inputs, outputs]; "blocks", the same two beside each other, to be
      cut into blocks.

  Returns:
    Parameters after each step, an array of the shape of `npz["CASE/RUN"]`.

  Raises:
    KeyError: For a method without an entry in `METHODS`.
  """
  name = run.removesuffix("_average")
  kind, bits = name[:-2], int(name[-2:])
  with jax.enable_x64(bits == 64):
    program, steps_64 = _program(_Key(npz), case, bits, layout)
    params, average = program(jnp.asarray(kind == "open"))
  result = np.asarray(average if run.endswith("_average") else params)
  if bits == 64:
    result = result[np.asarray(steps_64) - 1]
  return result


class _Key:
  """A file by its identity: one program serves the open and the closed run."""

  def __init__(self, npz):
    self.npz = npz

  def __hash__(self):
    return id(self.npz)

  def __eq__(self, other):
    return self.npz is other.npz


@functools.lru_cache(maxsize=2)
def _program(key: _Key, case: str, bits: int, layout_name: str):
  """(is open -> (parameters, points to evaluate) of all steps), and steps."""
  npz = key.npz
  file = json.loads(str(npz["format"]))
  settings = json.loads(str(npz[f"{case}/settings"]))
  name, dtype = settings["tree"], jnp.dtype(f"float{bits}")
  layout = _Layout(file["trees"][name], settings, layout_name)
  built = METHODS[settings["method"]](layout.setup(npz))
  load = lambda what: np.asarray(npz[f"{name}/{what}"], dtype)  # noqa: E731
  scale = np.asarray(settings.get("gradient_scale", 1.0), dtype)
  xs = dict(grads=load("grads"), features=load("features"))
  xs["targets"] = load("targets")
  if f"{name}/hessian_grads" in npz:
    xs["hessian_grads"] = load("hessian_grads")
  theta0 = load("params0")
  tx = optax.with_extra_args_support(built.tx)

  def step(is_open, carry, x):
    params, state, count = carry

    def gradient(params):
      theta = layout.read(params, theta0)
      o = jnp.tanh(x["features"] @ theta)
      residual = (o - x["targets"]) * (1 - o**2)
      closed = residual @ x["features"] / len(x["targets"])
      return layout.write(jnp.where(is_open, x["grads"], closed) * scale)

    hessian = x.get("hessian_grads")
    hessian = None if hessian is None else layout.write(hessian)
    extra = {}
    if built.extra_args is not None:
      extra = built.extra_args(count, Moment(hessian, gradient))
    updates, state = tx.update(gradient(params), state, params, **extra)
    params = optax.apply_updates(params, updates)
    read = built.read or optim.eval_params
    points = params, read(state, params)
    points = tuple(layout.read(point, theta0) for point in points)
    return (params, state, count + 1), points

  @jax.jit
  def program(is_open):
    params = layout.write(theta0)
    state = (built.init or built.tx.init)(params)
    carry = params, state, jnp.zeros((), jnp.int32)
    return jax.lax.scan(functools.partial(step, is_open), carry, xs)[1]

  return program, file["steps_64"]


class _Layout:
  """How a flat vector of all leaves is shown as a tree, and read back."""

  def __init__(self, shapes, settings, name):
    self.name, self.settings, self.offsets, at = name, settings, {}, 0
    self.shapes = {k: tuple(v) for k, v in shapes.items()}
    for leaf, shape in self.shapes.items():
      self.offsets[leaf] = at
      at += int(np.prod(shape))
    excluded = settings.get("excluded", ())
    self.leaves = [leaf for leaf in self.shapes if leaf not in excluded]

  def write(self, flat):
    """[n] -> tree."""
    tree = {}
    for leaf in self.leaves:
      at, shape = self.offsets[leaf], self.shapes[leaf]
      x = flat[at : at + int(np.prod(shape))].reshape(shape)
      tree[leaf] = jnp.asarray(self._show(x))
    return tree

  def read(self, tree, rest):
    """Tree -> [n]; leaves that the tree has not are taken from `rest`."""
    flat = jnp.asarray(rest)
    for leaf in self.leaves:
      x = self._hide(tree[leaf], self.shapes[leaf]).reshape(-1)
      flat = flat.at[self.offsets[leaf] : self.offsets[leaf] + x.size].set(x)
    return flat

  def _show(self, x):
    if self.name == "torch" or x.ndim < 2:
      return x
    x = x.mT
    if self.name == "kernels" or x.ndim > 2:
      return x
    other = -3 * x[::-1]  # Another matrix, which must not be seen in `x`.
    if self.name == "stacked":
      return jnp.stack([other, x])
    return jnp.concatenate([other, x])

  def _hide(self, x, shape):
    if self.name == "torch" or len(shape) < 2:
      return x
    if self.name == "stacked" and len(shape) == 2:
      x = x[1]
    elif self.name == "blocks" and len(shape) == 2:
      x = x[shape[1] :]
    return x.mT

  def setup(self, npz) -> Setup:
    """What the method is built from."""
    shapes = jax.eval_shape(lambda: self.write(jnp.zeros(self._size())))
    shapes = {leaf: x.shape for leaf, x in shapes.items()}
    dims = {leaf: self._dims(leaf) for leaf in self.leaves}
    block = None
    if self.name == "blocks":
      block = max(max(self.shapes[k]) for k in self.leaves if dims[k])
    warm = self._warm(npz) if self.settings.get("warm") else None
    return Setup(self.settings, dims, shapes, block, warm)

  def _size(self):
    return sum(int(np.prod(shape)) for shape in self.shapes.values())

  def _dims(self, leaf):
    rank = len(self.shapes[leaf])
    if rank < 2:
      return None
    stacked = rank == 3 or self.name == "stacked"
    at = 1 if stacked else 0
    sides = (at + 1, at) if self.name == "torch" else (at, at + 1)
    return optim.DimensionNumbers(sides, stack=0 if stacked else ())

  def _warm(self, npz):
    sides = dict(outputs="L", inputs="R")
    return {
      leaf: {
        side: dict(
          factor=npz[f"{self.settings['tree']}/warm/{leaf}/{letter}"],
          basis=npz[f"{self.settings['tree']}/warm/{leaf}/Q_{letter}"],
          eigenvalues=npz[
            f"{self.settings['tree']}/warm/{leaf}/eigenvalues_{letter}"
          ],
        )
        for side, letter in sides.items()
      }
      for leaf in self.leaves
    }
