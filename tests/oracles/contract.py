"""The transforms under contract, one row each; see optim/test_contract.py."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import optim

STACK = optim.DimensionNumbers(sides=(1, 2), stack=0)
MATRIX = optim.DimensionNumbers()
# Square, so that no factor has a null space: its basis would be round-off.
SHAPES = dict(
  matrix=(5, 5),
  stacked=(2, 4, 4),
  plain3d=(2, 3, 2),
  vector=(3,),
  scalar=(),
  empty=(0, 3),
)
DIMENSIONS = dict(
  matrix=MATRIX, stacked=STACK, plain3d=None, vector=None, scalar=None,
  empty=None,
)  # fmt: skip
# Where they lie on a mesh of axes "a", 2, and "d", 4.
SPECS = {name: P() for name in SHAPES} | dict(
  stacked=P("a", None, "d"), plain3d=P("a")
)
INTEGERS = ("precondition_frequency", "max_precond_dim")


@dataclasses.dataclass(frozen=True)
class Row:
  """One transform under contract.

  Attributes:
    make: The factory.
    options: Its arguments here, besides the learning rate.
    static: Arguments to name to `optax.inject_hyperparams`.
    descends: Whether its updates are steps downhill (else a direction uphill).
    rates: Names of its learning rates.
    extra_args: Made from (params), passed to each update.
    coasts: Whether its updates go on for a while at a learning rate of 0.
    element_wise: Whether the state has arrays like the leaves of no matrix.
    repeats: The row whose transform this one only chains with decay and a
      rate. By default an alias is compared with a composition by hand; what
      else a row promises is tested by `make slow`.
    slow: Whether `make slow` tests all that the row promises: for factories
      that only pass their arguments on to those of another row.
  """

  make: Callable[..., optax.GradientTransformation]
  options: dict[str, Any]
  static: tuple[str, ...]
  descends: bool = False
  rates: tuple[str, ...] = ("learning_rate",)
  extra_args: Callable[[Any], dict[str, Any]] = lambda params: {}
  coasts: bool = False
  element_wise: bool = True
  repeats: str = ""
  slow: bool = False

  def build(self, **changes):
    options = self.options | changes
    if "learning_rate" in inspect.signature(self.make).parameters:
      options = dict(learning_rate=1e-2) | options
    return optax.with_extra_args_support(self.make(**options))


def _targets(count):
  """Batches for the transforms that take their data themselves."""
  return {k: jnp.stack([x] * count) for k, x in make_params(seed=9).items()}


def _curvature():
  """An estimate of a diagonal, of all leaves."""
  return {k: 50 * jnp.square(x) for k, x in make_params(seed=8).items()}


def _distance(params, batch):
  """Half the squared distance of what leaves there are to their targets."""
  present = {
    k: x for k, x in params.items() if not isinstance(x, optax.MaskedNode)
  }
  return sum(jnp.sum((x - batch[k]) ** 2) / 2 for k, x in present.items())


_COMMON = dict(dimension_numbers=DIMENSIONS)
_TWO_RATES = ("learning_rate", "adam_learning_rate")
_REFRESHED = _COMMON | dict(precondition_frequency=2)
# With one side a matrix, who comes when depends on what other leaves there are.
_AT_ONCE = _REFRESHED | dict(stagger=False)
# Each label once; the three parts of `plain3d` are its outputs.
_BLOCKS = dict(
  labels=dict(
    matrix="head", stacked="embedding", plain3d="qkv", vector="norm",
    scalar="other", empty="other",
  ),
  dimension_numbers=DIMENSIONS
  | dict(plain3d=optim.DimensionNumbers((2, 1), stack=0)),
)  # fmt: skip
_PENALTY = dict(quantizer=optim.Quantizer(optim.INT4), strength=0.1)
TRANSFORMS = {
  "scale_by_adalayer": Row(optim.scale_by_adalayer, _BLOCKS, ("t_freeze",)),
  "adalayer": Row(
    optim.adalayer, _BLOCKS, ("t_freeze",), descends=True,
    repeats="scale_by_adalayer",
  ),
  "scale_by_sophia_g": Row(
    optim.scale_by_sophia_g, dict(estimate_every=2), ("estimate_every",),
    extra_args=lambda params: dict(estimate=_curvature()),
  ),
  "sophia_g": Row(
    optim.sophia_g, dict(estimate_every=2), ("estimate_every",),
    descends=True, repeats="scale_by_sophia_g",
    extra_args=lambda params: dict(estimate=_curvature()),
  ),
  "scale_by_dampened_momentum": Row(optim.scale_by_dampened_momentum, {}, ()),
  "dampened_sgd": Row(
    optim.dampened_sgd, {}, (), descends=True,
    repeats="scale_by_dampened_momentum",
  ),
  "scale_by_accelerated_sgd": Row(
    optim.scale_by_accelerated_sgd,
    dict(a=0.9, c=1.0, precondition="before"), (),
  ),
  "accelerated_sgd": Row(
    optim.accelerated_sgd, dict(a=0.9, c=1.0, precondition="before"), (),
    descends=True, repeats="scale_by_accelerated_sgd",
  ),
  "scale_by_adafactor": Row(optim.scale_by_adafactor, _COMMON, ()),
  "adafactor": Row(
    optim.adafactor, _COMMON, (), descends=True, repeats="scale_by_adafactor",
  ),
  "average_weights": Row(
    optim.average_weights,
    dict(inner=optim.scale_by_muon(**_COMMON), decay=0.9),
    (),
  ),
  "gauss_newton": Row(
    optim.gauss_newton,
    dict(
      model_fn=lambda params, batch: params,
      loss_fn=_distance,
      inner_optimizer=optax.adam(1.0),
      inner_steps=2,
      line_search=optim.LineSearch(num_batches=1),
      warm_start=0.0,
      scope="full",
    ),
    ("model_fn", "loss_fn", "inner_steps", "steps_per_batch", "splits"),
    descends=True,
    extra_args=lambda params: dict(
      batches=_targets(2), ls_batches=_targets(1)
    ),
  ),
  "gauss_newton_microsteps": Row(
    optim.gauss_newton_microsteps,
    dict(inner_optimizer=optax.adam(1.0), inner_steps=2, line_search=None),
    ("inner_steps",),
    descends=True,
  ),
  "add_rounding_penalty": Row(optim.add_rounding_penalty, _PENALTY, ()),
  "lotion_adamw": Row(optim.lotion_adamw, _PENALTY, (), descends=True),
  "with_rounding_penalty": Row(
    optim.with_rounding_penalty,
    _PENALTY
    | dict(
      tx=optim.scale_by_soap(**_REFRESHED, first_step="identity"),
      curvature=functools.partial(optim.factor_diagonal, **_COMMON),
    ),
    ("curvature",),
  ),
  "rescaled": Row(
    optim.rescaled,
    dict(
      tx=optim.scale_by_muon(**_COMMON),
      scales=functools.partial(jax.tree.map, lambda x: 1.5 - x.ndim / 4),
    ),
    ("scales",),
  ),
  "normalize_spectral": Row(
    optim.normalize_spectral, _COMMON, (), element_wise=False
  ),
  "scale_by_diagonal_preconditioner": Row(
    optim.scale_by_diagonal_preconditioner,
    _COMMON | dict(basis="kronecker", basis_update_period=2),
    ("basis_update_period", "max_precond_dim"),
  ),
  "ademamix": Row(
    optim.ademamix, dict(b3_warmup=3), (), descends=True,
    repeats="scale_by_ademamix",
  ),
  "scale_by_ademamix": Row(
    optim.scale_by_ademamix, dict(alpha_warmup=3, b3_warmup=3, b3=0.99), ()
  ),
  "simplified_ademamix": Row(
    optim.simplified_ademamix,
    dict(b1=0.9, bias_correction1=True),
    ("bias_correction1", "bias_correction2"),
    descends=True,
    repeats="scale_by_simplified_ademamix",
  ),
  "scale_by_simplified_ademamix": Row(
    optim.scale_by_simplified_ademamix,
    dict(b1=0.95, alpha=2.0, b1_warmup=3, bias_correction1=True),
    ("bias_correction1", "bias_correction2"),
  ),
  "mars_correction": Row(optim.mars_correction, _COMMON, ()),
  "scale_by_mars": Row(
    optim.scale_by_mars, _COMMON | dict(variant="muon"), ("ns_steps",)
  ),
  "mars": Row(
    optim.mars, _COMMON | dict(variant="muon"), ("ns_steps",),
    descends=True, repeats="scale_by_mars",
  ),
  "primal_averaging": Row(
    optim.primal_averaging,
    dict(
      base=optim.scale_by_muon(**_COMMON, beta=0.0),
      eval_interp=0.9,
      warmup_steps=2,
      weight_decay=0.01,
    ),
    (), descends=True, coasts=True,
  ),
  "schedule_free_adamw": Row(
    optim.schedule_free_adamw, dict(warmup_steps=2), (),
    descends=True, coasts=True,
  ),
  "schedule_free_sgd": Row(
    optim.schedule_free_sgd, dict(warmup_steps=2), (),
    descends=True, coasts=True,
  ),
  "soap": Row(optim.soap, _REFRESHED, INTEGERS, descends=True),
  "scale_by_soap": Row(
    optim.scale_by_soap, _REFRESHED | dict(first_step="identity"), INTEGERS
  ),
  "kl_soap": Row(optim.kl_soap, _REFRESHED, INTEGERS, descends=True),
  "soap_h": Row(
    optim.soap_h, _REFRESHED | dict(adam_learning_rate=1e-3), INTEGERS,
    descends=True, rates=_TWO_RATES, slow=True,
  ),
  "kl_shampoo": Row(
    optim.kl_shampoo, _REFRESHED, INTEGERS, descends=True, slow=True
  ),
  "scale_by_kl_shampoo": Row(
    optim.scale_by_kl_shampoo, _REFRESHED, INTEGERS
  ),
  "shampoo": Row(optim.shampoo, _REFRESHED, INTEGERS, descends=True),
  "scale_by_shampoo": Row(optim.scale_by_shampoo, _REFRESHED, INTEGERS),
  "soap_muon": Row(
    optim.soap_muon, _REFRESHED | dict(adam_learning_rate=1e-3),
    (*INTEGERS, "ns_steps"), descends=True,
    rates=("learning_rate", "adam_learning_rate"),
    repeats="scale_by_soap_muon",
  ),
  "scale_by_soap_muon": Row(
    optim.scale_by_soap_muon, _REFRESHED, (*INTEGERS, "ns_steps")
  ),
  "moso": Row(
    optim.moso, _AT_ONCE, INTEGERS, descends=True, repeats="scale_by_moso"
  ),
  "scale_by_moso": Row(optim.scale_by_moso, _AT_ONCE, INTEGERS),
  "muon": Row(
    optim.muon, _COMMON | dict(adam_learning_rate=1e-3),
    ("ns_steps",), descends=True,
    rates=_TWO_RATES,
  ),
  "scale_by_muon": Row(
    optim.scale_by_muon, _COMMON, ("ns_steps",)
  ),
  "normuon": Row(
    optim.normuon, _COMMON | dict(adam_learning_rate=1e-3),
    ("ns_steps",), descends=True, rates=_TWO_RATES, slow=True,
  ),
  "descend": Row(
    optim.descend,
    dict(
      direction=optim.scale_by_muon(**_COMMON, variance="longer"),
      weight_decay=optim.Decay(
        1e-3, cautious=True, coupling="schedule", peak=1e-2
      ),
    ),
    (), descends=True,
  ),
  "with_update_rms": Row(
    optim.with_update_rms,
    _COMMON | dict(
      direction=optim.scale_by_muon(**_COMMON), update_rms=1.0,
      max_update_rms=0.9,
    ),
    (), slow=True,
  ),
  "on_sphere": Row(
    optim.on_sphere,
    _COMMON | dict(
      direction=optim.scale_by_soap(**_REFRESHED), rule="record_rows",
      adam_learning_rate=1e-3, decay_order="official",
      weight_decay=optim.Decay(1e-3, cautious=True),
    ),
    (), descends=True, rates=_TWO_RATES,
  ),
  "adam_h": Row(
    optim.adam_h, _COMMON | dict(adam_learning_rate=1e-3), (),
    descends=True, rates=_TWO_RATES,
  ),
  "muon_h": Row(
    optim.muon_h, _COMMON | dict(adam_learning_rate=1e-3), ("ns_steps",),
    descends=True, rates=_TWO_RATES, slow=True,
  ),
  "normuon_h": Row(
    optim.normuon_h, _COMMON | dict(adam_learning_rate=1e-3), ("ns_steps",),
    descends=True, rates=_TWO_RATES, slow=True,
  ),
}  # fmt: skip


def make_params(dtype=jnp.float32, seed=0):
  """Normal leaves of all kinds."""
  rng = np.random.default_rng(seed)
  return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}
