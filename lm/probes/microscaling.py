"""What rounding the operands of products does to gradients, gains and weights.

`microscaling/zeta` is |g_low - g| / |g| for the gradients of the first
microbatch at the same parameters, with the run's products and with plain ones;
`cosine` is between both. `zeta/PART` is of the parameters below PART alone.
zeta is a lower bound of the norm of Z in g_low = (1 + Z) g.

Gains are looked at as if they were cut into blocks of `block_size` on `grid`,
with OCP's scales and with scales rounded up: `gain_last` is the share in the
last code of a block, `gain_over` the share beyond it, `gain_codes` the count of
codes in use. `weight_over` is the share of matrix entries beyond the last code
of the slot that rounds W in the forward product.

Source: https://arxiv.org/abs/2506.20752, section 3.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..model import product_slots
from ..model.params import by_path
from ..model.product_slots import GRIDS
from ..model.transformer import Transformer
from ..objectives import table as objectives
from ..step.update import Context, Metrics
from ..weights import table as weights

_RULES = {"floor": "pow2_floor", "ceil": "pow2_ceil"}


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of the probe.

  Attributes:
    every: Updates from one measurement to the next.
    grid: Of the gains, as in `config.quant.grid`.
    block_size: Of the gains.
  """

  every: int = dataclasses.field(
    default=100, metadata={"least": 1, "unit": "updates"}
  )
  grid: str = dataclasses.field(
    default="fp8_e4m3", metadata={"choices": tuple(GRIDS)}
  )
  block_size: int = dataclasses.field(
    default=32, metadata={"least": 1, "unit": "entries"}
  )


def measure(context: Context, *, options: Options) -> Metrics:
  """The numbers of the module's docstring, after the update."""
  parts, state = context.parts, context.state
  seen = parts.seen(state.params, state, weights.EVAL)
  rows = jax.tree.map(lambda x: x[0], context.rows)
  found = _gradients(parts, seen, rows) | _gains(seen, options)
  over = _overflow(parts.config.model, seen)
  found |= {} if over is None else {"weight_over": over}
  return {f"microscaling/{key}": value for key, value in found.items()}


def _gradients(parts: Any, seen: Any, rows: Any) -> Metrics:
  """Distance and angle between the gradients with and without rounding."""
  config, cfg = parts.config, parts.config.model
  objective = objectives.chosen(config)
  plain = dataclasses.replace(cfg, product="plain", product_kwargs=())

  def gradient(model):
    def loss(params):
      sums = objective.loss_sums(model, params, rows)
      return sums.loss / jnp.maximum(sums.weight, 1)

    return jax.grad(loss)(seen)

  low, exact = gradient(parts.model), gradient(Transformer(plain))
  gap = jax.tree.map(jnp.subtract, low, exact)
  norm = optax.tree.norm
  inner: Any = optax.tree.vdot(low, exact)
  found = {
    "zeta": _ratio(norm(gap), norm(exact)),
    "cosine": _ratio(inner, norm(low) * norm(exact)),
  }
  for part in exact:
    found[f"zeta/{part}"] = _ratio(norm(gap[part]), norm(exact[part]))
  return found


def _gains(seen: Any, options: Options) -> Metrics:
  """How the gains of the norms would lie in blocks."""
  gains = [x for path, x in by_path(seen).items() if path.endswith("gain")]
  found: Metrics = {}
  for name, rule in _RULES.items():
    last, over, size, codes = jnp.zeros(()), jnp.zeros(()), 0, []
    for gain in gains:
      quantizer = optim.Quantizer(
        GRIDS[options.grid], -1, options.block_size, rule
      )
      code = jnp.abs(gain / optim.step_size(gain, quantizer))
      rounded = optim.round_nearest(gain, quantizer)
      rounded = jnp.abs(rounded / optim.step_size(gain, quantizer))
      last += jnp.sum(rounded >= quantizer.grid.code_max)
      over += jnp.sum(code > quantizer.grid.code_max)
      size += gain.size
      codes.append(optim.unique_codes(gain, quantizer))
    found[f"gain_last/{name}"] = last / size
    found[f"gain_over/{name}"] = over / size
    found[f"gain_codes/{name}"] = jnp.mean(jnp.stack(codes).astype(float))
  return found


def _overflow(cfg: Any, seen: Any) -> jax.Array | None:
  """Share of entries beyond the last code of W's slot; None without slots."""
  over, size = jnp.zeros(()), 0
  for path, leaf in by_path(seen).items():
    slot, (axis, other) = (
      product_slots.of_leaf(cfg, path).w_y, product_slots.summed_axes(path),
    )  # fmt: skip
    if slot is None:
      continue
    quantizer = slot.quantizer(
      (axis, other) if slot.square else axis, leaf.ndim + min(axis, -2)
    )
    over += optim.saturated_share(leaf, quantizer) * leaf.size
    size += leaf.size
  return over / size if size else None


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  return a / jnp.maximum(b, jnp.finfo(jnp.float32).tiny)
