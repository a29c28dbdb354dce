"""SGD, Adam and their relatives for the authors' settings; see `authors.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracles.authors_built import Built, Setup

import optim


def _sgd(setup: Setup) -> Built:
  """torch's SGD: decay is added to the gradient."""
  decay = optax.add_decayed_weights(setup.settings["weight_decay"])
  step = optax.scale_by_learning_rate(setup.learning_rate)
  return Built(optax.chain(decay, _momentum(setup), step))


def _sgdw(setup: Setup) -> Built:
  """timm's SGDW: decoupled decay."""
  decay = optax.add_decayed_weights(setup.settings["weight_decay"])
  step = optax.scale_by_learning_rate(setup.learning_rate)
  return Built(optax.chain(_momentum(setup), decay, step))


def _momentum(setup: Setup) -> optax.GradientTransformation:
  """Both dampen nothing where there is no momentum."""
  if not setup.settings["momentum"]:
    return optax.identity()
  return optim.scale_by_dampened_momentum(
    **setup.pick("momentum", "dampening", "nesterov")
  )


def _adam(setup: Setup) -> Built:
  """torch's Adam: decay is added to the gradient."""
  decay = optax.add_decayed_weights(setup.settings["weight_decay"])
  adam = optax.adam(setup.learning_rate, **setup.pick("b1", "b2", "eps"))
  return Built(optax.chain(decay, adam))


def _adamw(setup: Setup) -> Built:
  """torch's AdamW, whose decay by (1 - eta lambda) is optax's."""
  options = setup.pick("b1", "b2", "eps", "weight_decay")
  return Built(optax.adamw(setup.learning_rate, **options))


def _lion(setup: Setup) -> Built:
  options = setup.pick("b1", "b2", "weight_decay")
  return Built(optax.lion(setup.learning_rate, **options))


def _acc_sgd(setup: Setup) -> Built:
  """The momentum holds gradients times their rates; decay is torch's."""
  numbers = setup.pick("kappa", "xi", "small_constant")
  acceleration = optim.acc_sgd_parameters(**numbers)
  decay = optax.add_decayed_weights(setup.settings.get("weight_decay", 0.0))
  step = optim.scale_by_accelerated_sgd(*acceleration)
  return Built(optax.chain(decay, _rate(setup), step, optax.scale(-1.0)))


def _laprop(setup: Setup) -> Built:
  """The momentum holds divided gradients times their rates, over their sum."""
  s, b1 = setup.settings, setup.settings["b1"]
  precondition = dict(precondition="before", **setup.pick("b2", "eps"))
  if "schedule" not in s:
    tx = optim.accelerated_sgd(
      s["learning_rate"],
      beta=b1,
      a=lambda count: (1 - b1) / (1 - b1 ** (count + 1)),
      **precondition,
    )
    return Built(optax.chain(tx, _decay_after(setup)))
  average, shares = 0.0, []
  for r in s["schedule"]:
    average = b1 * average + (1 - b1) * r
    shares.append((1 - b1) * (r / average if r else 1.0))
  shares = np.asarray(shares)
  tx = optax.chain(
    optim.scale_by_accelerated_sgd(0.0, **precondition),
    _rate(setup),
    optim.scale_by_accelerated_sgd(b1, lambda t: jnp.asarray(shares)[t]),
    optax.scale(-1.0),
    _decay_after(setup),
  )
  return Built(tx)


def _rate(setup: Setup) -> optax.GradientTransformation:
  rate = setup.learning_rate
  return optax.scale_by_learning_rate(rate, flip_sign=False)


def _decay_after(setup: Setup) -> optax.GradientTransformation:
  """w <- (w + u)(1 - eta lambda) of final updates u."""

  def update(updates, count, params):
    rate = setup.learning_rate
    shrink = setup.settings["weight_decay"] * (
      rate(count) if callable(rate) else rate
    )
    updates = jax.tree.map(lambda u, w: u - shrink * (w + u), updates, params)
    return updates, count + 1

  return optax.GradientTransformation(
    lambda params: jnp.zeros((), jnp.int32), update
  )


def _adafactor(setup: Setup) -> Built:
  tx = optim.adafactor(
    setup.learning_rate,
    weight_decay=setup.settings["weight_decay"],
    **_adafactor_options(setup),
  )
  return Built(tx)


def _adafactor_last(setup: Setup) -> Built:
  """Adafactor for the head and the norms, SGD for the rest; two rates."""
  s = setup.settings

  def kind(name):
    last = "ff_out_last" in name
    adaptive = (last and s["update_last"]) or (_norm(name) and s["update_norm"])
    return adaptive, last or _norm(name)

  def build(adaptive, last):
    if adaptive:
      direction = optim.scale_by_adafactor(**_adafactor_options(setup))
    else:
      direction = optax.ema(s["b1"])
    decay = optax.add_decayed_weights(s["weight_decay"])
    return optax.chain(direction, decay, _step(setup, last))

  labels = {name: kind(name) for name in setup.shapes}
  kinds = {kind: build(*kind) for kind in set(labels.values())}
  # A tuple is a tree: the labels are strings.
  return Built(
    optax.partition(
      {str(kind): tx for kind, tx in kinds.items()},
      {name: str(kind) for name, kind in labels.items()},
    )
  )


def _step(setup: Setup, last: bool) -> optax.GradientTransformation:
  """A schedule is of all leaves; a number is of all but the last ones."""
  rate = setup.learning_rate
  if last and "schedule" not in setup.settings:
    rate = setup.settings["learning_rate_last"]
  return optax.scale_by_learning_rate(rate)


def _norm(name: str) -> bool:
  """The authors' rule."""
  return "norm" in name or "ln_f" in name


def _adafactor_options(setup: Setup) -> dict[str, Any]:
  options = setup.pick("b1", "b2", "eps", "neuron_only")
  dims = {name: _all_sides(setup, d) for name, d in setup.dims.items()}
  return dict(options, parity=True, dimension_numbers=dims)


def _all_sides(setup: Setup, dims: Any) -> Any:
  """The authors know no stacks: each axis of a leaf is a side, inputs first."""
  known = [d for d in setup.dims.values() if d is not None]
  stacked = all((d.sides, d.stack) == ((1, 2), 0) for d in known)
  if dims is None or stacked:
    return dims
  return optim.DimensionNumbers((*dims.sides, *dims.stack_axes))


def _sophia(setup: Setup) -> Built:
  """The estimate after a step is ours at the start of the next call."""
  s = setup.settings
  tx = optim.sophia_g(
    setup.learning_rate,
    estimate_every=s["hessian_interval"],
    **setup.pick("b1", "b2", "rho", "batch_tokens", "weight_decay"),
  )

  def init(params):
    return tx.init(params), optax.tree.zeros_like(params)

  def update(updates, state, params, *, sampled):
    state, last = state
    estimate = jax.tree.map(jnp.square, last)
    updates, state = tx.update(updates, state, params, estimate=estimate)
    return updates, (state, sampled)

  return Built(
    optax.GradientTransformationExtraArgs(init, update),
    extra_args=lambda count, moment: dict(sampled=moment.hessian_grads),
  )


def _adalayer(setup: Setup) -> Built:
  """The authors have no rate for the last leaves here."""
  tx = optim.adalayer(
    setup.learning_rate,
    weight_decay=setup.settings["weight_decay"],
    **_adalayer_options(setup),
    **setup.pick("t_freeze", "update_last"),
  )
  return Built(tx)


def _adalayer_last(setup: Setup) -> Built:
  """A leaf may have the last rate and be the affair of SGD."""
  s = setup.settings
  options = _adalayer_options(setup) | dict(sgd_elsewhere=True)

  def build(last):
    direction = optim.scale_by_adalayer(**options)
    decay = optax.add_decayed_weights(s["weight_decay"])
    return optax.chain(direction, decay, _step(setup, last))

  labels = {
    name: "last" if "ff_out_last" in name or _norm(name) else "rest"
    for name in setup.shapes
  }
  return Built(
    optax.partition(dict(last=build(True), rest=build(False)), labels)
  )


def _adalayer_options(setup: Setup) -> dict[str, Any]:
  """Labels by the authors' names of leaves; words are the rows in torch."""
  s, dims, labels = setup.settings, dict(setup.dims), {}
  for name, shape in setup.shapes.items():
    labels[name] = "other"
    rows = shape[dims[name].sides[1]] if dims[name] is not None else 0
    if s["att_correction"] and "att_proj" in name:
      labels[name] = "qkv"
    elif s["lastlayer_correction"] and "ff_out" in name and rows > _WORDS:
      labels[name] = "head"
    elif _norm(name):
      labels[name] = "norm"
    elif s["firstlayer_correction"] and "wte" in name:
      labels[name] = "embedding"
      sides = dims[name].sides[::-1]  # From words.
      dims[name] = optim.DimensionNumbers(sides, stack=dims[name].stack)
  options = setup.pick("b1", "b2", "eps", "update_norm")
  return dict(options, labels=labels, dimension_numbers=dims)


# A head has more rows than this; 10000 in the authors' program.
_WORDS = 7

METHODS = {
  "torch_sgd": _sgd,
  "sgdw": _sgdw,
  "torch_adam": _adam,
  "torch_adamw": _adamw,
  "lion": _lion,
  "acc_sgd": _acc_sgd,
  "laprop": _laprop,
  "adafactor": _adafactor,
  "adafactor_last": _adafactor_last,
  "sophia_g": _sophia,
  "adalayer": _adalayer,
  "adalayer_last": _adalayer_last,
}
LAYOUTS = {
  "adafactor_decay": ("kernels",),
  "adafactor_neuron_only": ("kernels",),
  "adafactor_last": ("stacked",),
  "adalayer_first_layer": ("kernels",),
  "adalayer_frozen_update": ("stacked",),
}
