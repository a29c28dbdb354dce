"""Our transforms for the authors' settings; see `authors.py`."""

import jax
import jax.numpy as jnp
import optax
from oracles.authors_built import Built, Setup

import optim

_SHARED = ("b1", "weight_decay", "warmup_steps", "r", "weight_lr_power")


def _schedule_free_adamw(setup: Setup) -> Built:
  variant = "paper" if setup.settings["method"].endswith("paper") else "1.3"
  return Built(
    optim.schedule_free_adamw(
      setup.learning_rate,
      decay_at=_decay_at(setup),
      variant=variant,
      **setup.pick(*_SHARED, "b2", "eps"),
    )
  )


def _schedule_free_sgd(setup: Setup) -> Built:
  return Built(
    optim.schedule_free_sgd(
      setup.learning_rate,
      decay_at=_decay_at(setup),
      **setup.pick(*_SHARED),
    )
  )


def _decay_at(setup: Setup) -> str:
  return "z" if setup.settings.get("decay_at_z") else "y"


def _ademamix(setup: Setup) -> Built:
  return Built(
    optim.ademamix(
      setup.learning_rate,
      **setup.pick(
        "b1", "b2", "b3", "alpha", "alpha_warmup", "b3_warmup", "eps",
        "weight_decay",
      ),
    )
  )  # fmt: skip


def _simplified_ademamix(setup: Setup) -> Built:
  return Built(
    optim.simplified_ademamix(
      setup.learning_rate,
      **setup.pick(
        "b1", "b2", "alpha", "b1_warmup", "min_b1", "eps", "weight_decay",
        "bias_correction1", "bias_correction2",
      ),
    )
  )  # fmt: skip


def _mars(setup: Setup) -> Built:
  s = setup.settings
  options = setup.pick(
    "b1", "b2", "eps", "weight_decay", "gamma", "optimize_1d", "b1_1d", "b2_1d"
  )
  if not s["optimize_1d"]:  # The authors' code has one rate and decay then.
    options |= dict(
      rate_ratio_1d=s["learning_rate_1d"] / s["learning_rate"],
      weight_decay_1d=s["weight_decay_1d"],
    )
  tx = optim.mars(
    setup.learning_rate,
    variant=s["mars_type"].removeprefix("mars-"),
    exact=not s["approximate"],
    ns_dtype=_ns_dtype(s),
    # Of more than two axes is no matrix for the authors.
    dimension_numbers={
      k: d if len(setup.shapes[k]) == 2 else None for k, d in setup.dims.items()
    },
    **options,
  )
  return Built(tx) if s["approximate"] else _exact(tx)


def _mars_m(setup: Setup) -> Built:
  s = setup.settings
  leaves = s["muon_leaves"]
  matrices = optim.mars(
    setup.learning_rate,
    variant="muon",
    b1=s["beta"],
    eps=1e-7,
    ns_dtype=_ns_dtype(s),
    dimension_numbers={
      k: d if k in leaves else None for k, d in setup.dims.items()
    },
    **setup.pick("gamma", "ns_steps", "weight_decay"),
  )
  # Ours for the rest is Adam's, whose eps is corrected as v is. The closed run
  # couples all leaves, so the rest follows the authors here.
  rest = optax.chain(
    _adam_with_plain_eps(s["adam_b1"], s["adam_b2"], s["adam_eps"]),
    optax.add_decayed_weights(s["weight_decay"]),
    optax.scale_by_learning_rate(setup.learning_rate),
  )
  labels = {k: "matrix" if k in leaves else "rest" for k in setup.dims}
  return Built(optax.partition(dict(matrix=matrices, rest=rest), labels))


def _adam_with_plain_eps(b1, b2, eps) -> optax.GradientTransformation:
  moments = optax.scale_by_adam(b1, b2)

  def update_fn(updates, state, params=None):
    _, state = moments.update(updates, state, params)
    t = state.count
    scale = jnp.sqrt(1 - b2**t) / (1 - b1**t)
    updates = jax.tree.map(
      lambda m, v: scale * m / (jnp.sqrt(v) + eps), state.mu, state.nu
    )
    return updates, state

  return optax.GradientTransformation(moments.init, update_fn)


def _ns_dtype(settings: dict) -> jnp.dtype | None:
  kind = settings.get("newton_schulz_dtype", "float")
  return None if kind == "float" else jnp.dtype(kind)


def _exact(tx: optax.GradientTransformation) -> Built:
  """Gives the gradient of this batch at the previous parameters."""
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return tx.init(params), params

  def update_fn(updates, state, params=None, *, gradient):
    inner, previous = state
    updates, inner = tx.update(
      updates, inner, params, previous_grads=gradient(previous)
    )
    return updates, (inner, params)

  return Built(
    optax.GradientTransformationExtraArgs(init_fn, update_fn),
    extra_args=lambda step, moment: dict(gradient=moment.gradient),
  )


METHODS = {
  "ademamix": _ademamix,
  "simplified_ademamix": _simplified_ademamix,
  "mars": _mars,
  "mars_m": _mars_m,
  "schedule_free_adamw": _schedule_free_adamw,
  "schedule_free_adamw_paper": _schedule_free_adamw,
  "schedule_free_adamw_reference": _schedule_free_adamw,
  "schedule_free_sgd": _schedule_free_sgd,
}
LAYOUTS = {
  "mars_shampoo": ("kernels",),
  "mars_m": ("kernels", "stacked"),
}
