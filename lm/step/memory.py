"""Bytes of one device, before anything runs: what is kept, and the peak.

What is kept from one update to the next (parameters, each field of the
optimiser's state, averages of the weights) is exact: the shapes and shardings
of the state, from `build.build`. The rest is an estimate of the peak within an
update:

    kept + gradients + max(backward pass, optimiser)

The backward pass holds what differentiation saves under the configuration's
rematerialisation policy. These bytes are counted in the traced program, without
a formula for each policy. Compilers merge and recompute some of them.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import optim

from ..cli.text import format_table
from ..config.errors import ConfigError
from ..config.schema import ModelConfig
from ..model import mesh as meshes
from ..model import params as param_table
from ..model.transformer import Transformer
from ..objectives import sums
from ..objectives import table as objectives
from ..weights import table as weights
from . import methods, sharding
from .parts import Parts

# Fields of `optim`'s states that only say how arrays are stored.
_STORAGE = ("stacks", "rest")
_SMALL = 4096  # Counts and scalars are one row together.

KEPT, GRADIENTS, BACKWARD, UPDATE = "kept", "gradients", "backward", "update"


class Row(NamedTuple):
  """One line of the table."""

  name: str  # What it is.
  bytes: int  # Of one device.
  # Of all devices if each byte were held once; None for estimates.
  whole: int | None
  phase: str  # kept, gradients, backward or update: see the module docstring.


def kept(parts: Parts) -> list[Row]:
  """Rows of the training state and of the batch; exact."""
  now, lies = parts.abstract_state, parts.shardings
  rows = [_row("parameters", now.params, lies.params)]
  opt_state, places = now.opt_state, lies.opt_state
  if isinstance(opt_state, optim.AverageState):
    averages = opt_state.averages, places.averages
    rows.append(_row("averages of the weights", *averages))
    opt_state, places = opt_state.inner, places.inner
  rows += _optimizer_rows(opt_state, places)
  if now.frozen != ():
    rows.append(_row("weights that are not trained", now.frozen, lies.frozen))
  buffer = jax.ShapeDtypeStruct(parts.buffer_shape, jnp.int32)
  ahead = 1 + parts.config.data.prefetch
  # The numbers of the rows, 4 bytes each, are left out.
  held = ahead * sharding.leaf_bytes(buffer, parts.batch_sharding.tokens)
  rows.append(Row("batches, with those made ahead", held, None, KEPT))
  return rows


def plan(parts: Parts) -> list[Row]:
  """`kept`, and estimates of what an update needs besides."""
  return [*kept(parts), *_gradient_rows(parts), *_backward_rows(parts)]


def by_phase(rows: Iterable[Row]) -> dict[str, int]:
  """Bytes of one device in each phase."""
  sums = dict.fromkeys((KEPT, GRADIENTS, BACKWARD, UPDATE), 0)
  for row in rows:
    sums[row.phase] += row.bytes
  return sums


def peak(rows: Iterable[Row]) -> int:
  """Bytes of one device at the worst moment of an update."""
  sums = by_phase(rows)
  return sums[KEPT] + sums[GRADIENTS] + max(sums[BACKWARD], sums[UPDATE])


def table(rows: Sequence[Row]) -> str:
  """The rows, one a line, and their peak.

  `share` is the part of the whole that a device holds.
  """
  cells = []
  for row in rows:
    share = "" if not row.whole else f"{row.bytes / row.whole:.3g}"
    cells.append([row.name, size_text(row.bytes), share, row.phase])
  whole = all(row.phase == KEPT for row in rows)
  cells.append(["kept" if whole else "peak", size_text(peak(rows)), "", ""])
  return format_table(["bytes of a device", "size", "share", "phase"], cells)


def check(parts: Parts) -> None:
  """Refuses a state that the devices of this process cannot hold.

  Raises:
    ConfigError: If a device states its memory and it is too small.
  """
  needed = peak(kept(parts))
  for device in parts.mesh.local_devices:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit and needed > limit:
      raise ConfigError(
        f"Each device would keep {size_text(needed)} from update to update, "
        f"but {device} has {size_text(limit)}: split the state by "
        "config.mesh.fsdp (e.g. --config.mesh.data=1 --config.mesh.fsdp=-1) or "
        "config.mesh.tensor, or take more devices; `python -m lm.tools.plan` "
        "shows what takes how much."
      )


def size_text(count: int) -> str:
  """Bytes as 12 B, 3.4 kB, 5.67 MB, 8.9 GB (powers of 1000)."""
  size, unit = float(count), ""
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if size < 999.5 or unit == "TB":
      break
    size /= 1000
  return f"{count} B" if unit == "B" else f"{size:.3g} {unit}"


def _row(name: str, tree: Any, lies: Any, phase: str = KEPT) -> Row:
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return Row(name, sharding.bytes_per_device(tree, lies), whole, phase)


def _optimizer_rows(opt_state: Any, lies: Any) -> list[Row]:
  """A row for each field of the state that holds arrays of some size."""
  held: dict[str, list[int]] = {}
  flat = jax.tree_util.tree_leaves_with_path(opt_state)
  for (path, leaf), place in zip(flat, jax.tree.leaves(lies), strict=True):
    names = [getattr(key, "name", None) for key in path]
    field = ".".join(n for n in names if n and n not in _STORAGE)
    sizes = held.setdefault(field or "arrays", [0, 0])
    sizes[0] += sharding.leaf_bytes(leaf, place)
    sizes[1] += leaf.size * leaf.dtype.itemsize
  rows = [
    Row(f"optimiser: {field}", here, whole, KEPT)
    for field, (here, whole) in held.items()
    if whole >= _SMALL
  ]
  small = sum(here for here, whole in held.values() if whole < _SMALL)
  return [*rows, Row("optimiser: counts", small, None, KEPT)]


def _gradient_rows(parts: Parts) -> list[Row]:
  one = sharding.bytes_per_device(
    parts.abstract_weights, parts.weight_shardings
  )
  passes = parts.buffer_shape[0]
  rows = [Row("gradients", one, None, GRADIENTS)]
  if passes > 1 and methods.of(parts.config).sums_passes:
    rows.append(Row("gradients, summed over passes", one, None, GRADIENTS))
  if weights.name(parts.config) != "identity":
    rows.append(Row("weights that the model sees", one, None, GRADIENTS))
  placed = sum(
    sharding.bytes_per_device(momentum, places)
    for momentum, places in zip(
      _momenta(parts.abstract_state.opt_state),
      _momenta(parts.shardings.opt_state),
      strict=True,
    )
  )
  if placed:  # Rotated, scaled, and on their way back to their parameters.
    rows.append(Row("updates of matrices", 2 * placed, None, UPDATE))
  return rows


def _momenta(opt_state: Any) -> list[optim.Momentum]:
  """The stacks of first moments of matrix methods."""
  is_momentum = lambda x: isinstance(x, optim.Momentum)  # noqa: E731
  nodes = jax.tree.leaves(opt_state, is_leaf=is_momentum)
  return [node for node in nodes if is_momentum(node)]


def _backward_rows(parts: Parts) -> list[Row]:
  config, mesh = parts.config, dict(parts.mesh.shape)
  tensor = mesh["tensor"]
  rows = -(-config.microbatch_size // (mesh["data"] * mesh["fsdp"]))
  cfg = config.model
  objective = objectives.chosen(config)
  saved = rows * saved_bytes_per_row(cfg, tensor, objective)
  name = f"activations, {rows} rows, remat {cfg.remat}"
  found = [Row(name, saved, None, BACKWARD)]
  chunk = max(1, cfg.loss_chunk // rows) if cfg.loss_chunk else cfg.L
  copies = methods.of(config).copies_of_logits
  logits = 4 * copies * rows * min(cfg.L, chunk) * cfg.V // tensor
  block = 0
  if cfg.remat != "none":  # One at a time is computed again, after the loss.
    one, two = (dataclasses.replace(cfg, N=n, remat="none") for n in (1, 2))
    block = rows * (
      saved_bytes_per_row(two, tensor, objective)
      - saved_bytes_per_row(one, tensor, objective)
    )
  again = "logits" if logits > block else "activations of a block, again"
  found.append(Row(again, max(logits, block), None, BACKWARD))
  if mesh["fsdp"] > 1:
    found.append(
      Row("weights, gathered", _gathered(cfg, tensor), None, BACKWARD)
    )
  return found


def _gathered(cfg: ModelConfig, tensor: int) -> int:
  """The head and two layers, whole over `fsdp`, in the compute type."""
  counts = param_table.count_params(cfg)
  item = jnp.dtype(cfg.compute_dtype).itemsize
  largest = max(counts.head, counts.embedding, 2 * counts.body // cfg.N)
  return item * largest // tensor


@functools.lru_cache(maxsize=64)  # Half a second, or more for large models.
def saved_bytes_per_row(
  cfg: ModelConfig,
  tensor: int = 1,
  objective: objectives.Chosen = objectives.Chosen(),  # noqa: B008
) -> int:
  """What a row of tokens leaves for the backward pass, on one device.

  The residuals of `jax.vjp` are measured for two numbers of rows. Residuals of
  equal size (weights, masks of positions) are no activations. An axis of heads
  or inner width is split over `tensor`. Two things are left out: logits, which
  compilers keep once whatever is derived from them, and the scores of a fused
  attention kernel.

  Args:
    cfg: The model, resolved.
    tensor: Devices along that axis of the mesh.
    objective: Of the run.
  """
  plain = dataclasses.replace(cfg, attention="xla")
  model = Transformer(plain)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(lambda k: param_table.init_params(plain, k), key)

  def residuals(rows: int) -> list[Any]:
    def pull(params, batch):
      def loss(params):
        found = objective.loss_sums(model, params, batch)
        return sum(sums.aux_losses(found.aux), found.loss)

      return jax.vjp(loss, params)[1]

    batch = objectives.Batch(
      jax.ShapeDtypeStruct((rows, cfg.L + 1), jnp.int32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return jax.tree.leaves(jax.eval_shape(pull, params, batch))

  total = 0
  for few, many in zip(residuals(2), residuals(4), strict=True):
    is_score = few.shape.count(cfg.L) > 1
    if cfg.V in few.shape or (is_score and cfg.attention != "xla"):
      continue
    a_row = (many.size - few.size) * few.dtype.itemsize // 2
    total += a_row // (tensor if _is_split(cfg, few.shape) else 1)
  return total


def _is_split(cfg: ModelConfig, shape: tuple[int, ...]) -> bool:
  """Whether an activation has an axis that lies along `tensor`."""
  sizes = shape[1:] if cfg.layers == "scan" and shape[0] == cfg.N else shape
  specs = jax.tree.leaves(param_table.block_specs(cfg))
  wide = {
    size
    for spec in specs
    for axis, size in zip(spec.axes, spec.shape, strict=True)
    if "tensor" in meshes.RULES[axis]
  } - {cfg.D, cfg.L, 1}
  return math.prod(sizes) > 0 and not wide.isdisjoint(sizes)
