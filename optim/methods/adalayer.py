"""Adalayer: Adam with one second moment for each block of a leaf.

A block is a matrix, one of the three parts of a fused attention kernel, or a
word of the vocabulary in the head or the embedding. The user says by labels
which leaf is what; names and sizes of leaves say nothing.

Differs from the authors' code: roles are labels, and stack axes always belong
to a block of their own. `optax.novograd` is another method, which divides the
gradient before it enters the momentum.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks, moments
from ..common.options import also_takes, takes
from ..common.tree import by_path, is_function, like, upcast, zeros
from ..matrices.any_mesh import on_any_mesh
from ..matrices.layout import DimensionTree, checked, numbers_by_path
from .decay import Decay, descend

Label = Literal["qkv", "head", "embedding", "norm", "other"]
LABELS = get_args(Label)


class BlockMoment(NamedTuple):
  """Second moment of a leaf: one number for each block."""

  means: jax.Array  # [stack axes, q k v or words], float32.


class AdalayerState(NamedTuple):
  """State of `scale_by_adalayer`."""

  count: jax.Array  # int32 []: calls.
  mu: Any  # Average of the gradients, like params, float32 or `mu_dtype`.
  nu: Any  # A `BlockMoment` for each leaf; () for the leaves of SGD.


@dataclasses.dataclass(frozen=True, eq=False)
class AdalayerOptions:
  """Options of `scale_by_adalayer`.

  Attributes:
    b1: Decay of m, in [0, 1).
    b2: Decay of v, in [0, 1).
    eps: Added to the square root.
    labels: What each leaf is: a tree of labels like params, or a function of
      params that makes such a tree. "qkv": three blocks, equal parts of the
      outputs. "head": a block for each output (word). "embedding": a block for
      each input (word). "norm" and "other": one block. None: all are "other".
    t_freeze: Number of calls after which v stays as it is; None: v never
      freezes. Let the learning rate be 0 before call `t_freeze`.
    update_last: False freezes the "head" as well.
    update_norm: False treats "norm" as "other".
    sgd_elsewhere: True gives the leaves "qkv" and "other" no v: SGD with an
      average, beside Adalayer for the head, the norms and the embedding.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no stack) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. No block holds two
      entries of a stack. A leaf without an entry gets the default: a leaf of
      two axes is a matrix [inputs, outputs], a leaf of fewer axes is one block,
      and a leaf of more axes is an error. A gain of stacked layers needs
      `DimensionNumbers((1,), stack=0)`. The argument None gives all leaves the
      default.
    mu_dtype: Type of m; None is float32.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-15
  _: dataclasses.KW_ONLY
  labels: Any | Callable[[Any], Any] | None = None
  t_freeze: int | None = None
  update_last: bool = True
  update_norm: bool = True
  sgd_elsewhere: bool = False
  dimension_numbers: DimensionTree = None
  mu_dtype: Any | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("b1", "b2"):
      checks.decay(name, getattr(self, name))
    checks.positive("eps", self.eps, zero_too=True)
    if self.t_freeze is None:
      return
    checks.count("t_freeze", self.t_freeze)
    if self.sgd_elsewhere:
      raise ValueError(
        f"t_freeze={self.t_freeze} with sgd_elsewhere=True: nothing would be "
        "left to freeze but the head. Take one of the two."
      )

  def blocks(self, tree: Any) -> Any:
    """A tree of `_Blocks` like `tree`."""
    numbers = numbers_by_path(tree, self.dimension_numbers)
    labels = labels_by_path(tree, self.labels)

    def of_leaf(path, leaf):
      name = jax.tree_util.keystr(path)
      label = labels[name]
      if label == "norm" and not self.update_norm:
        label = "other"
      dims = checked(name, leaf, numbers[name])
      sgd = self.sgd_elsewhere and label in ("qkv", "other")
      frozen = label in ("qkv", "other")
      frozen |= label == "head" and not self.update_last
      return _blocks(name, leaf, dims, label)._replace(
        adapts=not sgd, freezes=frozen
      )

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


@takes(AdalayerOptions)
@on_any_mesh
def scale_by_adalayer(
  o: AdalayerOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Divides Adam's momentum by one number for each block.

      m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) mean of g^2 over the block
      u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

  Frozen (`t_freeze`): at call t <= t_freeze b2 is 1 - 1 / (t + 1), so that v is
  the mean of t squares and one 0. Afterwards v stays, but the head's (with
  `update_last`), the norms' (with `update_norm`) and the embedding's v go on
  with b2. v has no bias correction at any call; m is averaged all the time.

  With `sgd_elsewhere` the leaves "qkv" and "other" have u = m / (1 - b1^t),
  without eps.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout, label or type, or for a "qkv" without three equal parts.

  References:
    Zhao et al., "Deconstructing what makes a good optimizer for language
    models", 2024, https://arxiv.org/abs/2407.07972
  """

  def init_fn(params):
    def moment(x, b):
      return BlockMoment(b.means(x)) if b.adapts else ()

    nu = jax.tree.map(moment, zeros(params), o.blocks(params))
    mu = zeros(params, o.mu_dtype)
    return AdalayerState(jnp.zeros((), jnp.int32), mu, nu)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    count: Any = optax.safe_increment(state.count)
    grads, blocks = upcast(updates), o.blocks(updates)

    def second(g, b, v):
      if not b.adapts:
        return ()
      decay: Any = o.b2
      if o.t_freeze is not None:
        later = 1.0 if b.freezes else o.b2
        decay = jnp.where(count <= o.t_freeze, 1 - 1.0 / (count + 1.0), later)
      means = b.means(jnp.square(g))
      return BlockMoment(moments.average(v.means, means, decay))

    def direction(m, b, v):
      scale = 1 - o.b1**count
      if b.adapts:
        corrected = o.b2 if o.t_freeze is None else 0.0  # 0: no correction.
        roots = moments.root(v.means, o.eps, corrected, count)
        scale = scale * b.spread(roots, m.shape)
      return moments.divide(m, jnp.asarray(scale, m.dtype))

    mu = jax.tree.map(lambda g, m: moments.average(m, g, o.b1), grads, state.mu)
    nu = jax.tree.map(second, grads, blocks, state.nu)
    steps = jax.tree.map(direction, mu, blocks, nu)
    return like(steps, updates), AdalayerState(count, like(mu, state.mu), nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_adalayer)
def adalayer(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  learning_rate_last: optax.ScalarOrSchedule | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adalayer with decoupled weight decay; see `scale_by_adalayer`.

  Args:
    learning_rate: Number, array or schedule; Adam's, or SGD's with
      `sgd_elsewhere`.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well.
    learning_rate_last: The learning rate of the leaves labelled "head" or
      "norm", which also multiplies their decay; None is `learning_rate`.
    **direction: The arguments of `scale_by_adalayer`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_adalayer`.
  """
  step = None
  if learning_rate_last is not None:
    checks.scalar_or_schedule("learning_rate_last", learning_rate_last)
    o = AdalayerOptions(**direction)

    def rate_of(params):
      labels = labels_by_path(params, o.labels)
      ends = [x in ("head", "norm") for x in labels.values()]
      rates = ["last" if end else "rest" for end in ends]
      return jax.tree.unflatten(jax.tree.structure(params), rates)

    step = optax.partition(
      {
        "last": optax.scale_by_learning_rate(learning_rate_last),
        "rest": optax.scale_by_learning_rate(learning_rate),
      },
      rate_of,
    )
  return descend(
    scale_by_adalayer(**direction), learning_rate, weight_decay, mask, step=step
  )


class _Blocks(NamedTuple):
  """How a leaf is cut into blocks.

  Attributes:
    shape: The leaf's shape, with the axis that is cut as two axes.
    inside: Axes of this shape within a block; the others count the blocks.
    adapts: Whether the leaf has second moments.
    freezes: Whether they stay after `t_freeze`.
  """

  shape: tuple[int, ...]
  inside: tuple[int, ...]
  adapts: bool = True
  freezes: bool = True

  def means(self, x: jax.Array) -> jax.Array:
    """The mean of each block; 0 of a leaf without entries."""
    size = 1
    for axis in self.inside:
      size *= self.shape[axis]
    return jnp.sum(x.reshape(self.shape), axis=self.inside) / max(size, 1)

  def spread(self, means: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The number of each block for all its entries, in the leaf's shape."""
    wide = jnp.expand_dims(means, self.inside)
    return jnp.broadcast_to(wide, self.shape).reshape(shape)


def _blocks(path: str, leaf: Any, dims: Any, label: str) -> _Blocks:
  """The blocks of a leaf with this label."""
  shape, kept = tuple(leaf.shape), set(dims.stack_axes if dims else ())
  if label in ("qkv", "head", "embedding"):
    if dims is None or len(dims.side_axes) != 2:
      raise ValueError(
        f"labels{path}={label!r}, but which axes of this leaf of shape {shape} "
        "are inputs and outputs is not known. Pass dimension_numbers with an "
        "entry for it, e.g. DimensionNumbers() or optim.OUT_IN."
      )
    inputs, outputs = dims.side_axes
    if label == "qkv":
      return _in_three(path, shape, kept, outputs[0])
    kept |= set(outputs if label == "head" else inputs)
  inside = tuple(axis for axis in range(len(shape)) if axis not in kept)
  return _Blocks(shape, inside)


def _in_three(
  path: str, shape: tuple[int, ...], stack: set[int], axis: int
) -> _Blocks:
  """Three equal parts of an axis: q, k and v."""
  if shape[axis] % 3:
    raise ValueError(
      f"labels{path}='qkv', but axis {axis} of its shape {shape}, the first of "
      "the outputs, cannot be cut into three equal parts. Label it 'other', or "
      "name the axis of q, k, v first in the outputs of dimension_numbers."
    )
  cut = (*shape[:axis], 3, shape[axis] // 3, *shape[axis + 1 :])
  kept = {a + (a > axis) for a in stack} | {axis}
  return _Blocks(cut, tuple(a for a in range(len(cut)) if a not in kept))


def labels_by_path(params: Any, labels: Any) -> dict[str, str]:
  """{path: label} of the leaves that no mask has taken out.

  Raises:
    ValueError: For a leaf without a label, or for an unknown label.
  """
  paths = list(by_path(params))
  if labels is None:
    return dict.fromkeys(paths, "other")
  if is_function(labels):
    labels = labels(params)
  known = by_path(labels)
  for path in paths:
    if path not in known:
      raise ValueError(
        f"labels has no label for leaf {path} of params; it labels "
        f"{list(known)[:8]}. Give every leaf one of {', '.join(LABELS)}."
      )
    checks.choice(f"labels{path}", known[path], LABELS)
  return {path: known[path] for path in paths}
