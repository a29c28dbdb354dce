"""Muon and its relatives for the authors' settings; see `authors.py`."""

import jax.numpy as jnp
import optax
from oracles.authors_built import Built, Setup

import optim

# NVIDIA's names of lists of coefficients that are not ours.
_LISTS = {"simple": "keller"}
_TINY = 1e-15  # Authors who take max(||N||, tiny), and not ||N|| + 1e-7.
# The speed run's Newton-Schulz, which converges.
_SPEED_RUN = dict(ns_coeffs="record")


def _keller(setup: Setup) -> Built:
  s = setup.settings
  tx = optim.muon(
    setup.learning_rate,
    beta=s["beta"],
    ns_steps=s["ns_steps"],
    nesterov=s["nesterov"],
    weight_decay=s["weight_decay"],
    adam_learning_rate=s["adam_learning_rate"],
    dimension_numbers=_dims(setup),
    **setup.pick("adam_b1", "adam_b2", "adam_eps"),
  )
  return Built(tx)


def _moonlight(setup: Setup) -> Built:
  s, dims = setup.settings, _dims(setup)
  matrices = optim.scale_by_muon(
    s["beta"],
    nesterov=s["nesterov"],
    ns_steps=s["ns_steps"],
    # Their momentum is a sum: 1 / (1 - beta) times ours.
    ns_eps=1e-7 * (1 - s["beta"]),
    consistent_rms=0.2,
    dimension_numbers=dims,
  )
  adam = _early_eps(s["adam_b1"], s["adam_b2"], s["adam_eps"])
  labels = {k: "adam" if d is None else "muon" for k, d in dims.items()}
  direction = optax.partition(dict(muon=matrices, adam=adam), labels)
  return Built(optim.descend(direction, setup.learning_rate, s["weight_decay"]))


def _torch(setup: Setup) -> Built:
  s = setup.settings
  rms = dict(original=None, match_rms_adamw=0.2)[s["adjust_lr"]]
  tx = optim.muon(
    setup.learning_rate,
    beta=s["beta"],
    nesterov=s["nesterov"],
    ns_steps=s["ns_steps"],
    ns_eps=_TINY,
    consistent_rms=rms,
    weight_decay=s["weight_decay"],
    dimension_numbers=_dims(setup),
  )
  return Built(tx)


def _muon_h(setup: Setup) -> Built:
  tx = optim.muon_h(
    setup.learning_rate,
    beta=setup.settings["beta"],
    dimension_numbers=setup.dims,
    **_SPEED_RUN,
  )
  return Built(tx)


def _normuon_h(setup: Setup) -> Built:
  tx = optim.normuon_h(
    setup.learning_rate,
    dimension_numbers=setup.dims,
    variance="longer",
    **_SPEED_RUN,
    **setup.pick("beta", "b2", "eps"),
  )
  return Built(tx)


def _normuon(setup: Setup) -> Built:
  tx = optim.normuon(
    setup.learning_rate,
    dimension_numbers=setup.dims,
    variance="longer",
    eps=1e-10,
    **_SPEED_RUN,
    **setup.pick("beta", "weight_decay"),
  )
  return Built(tx)


def _adam_h(setup: Setup) -> Built:
  tx = optim.adam_h(
    setup.learning_rate,
    dimension_numbers=setup.dims,
    **setup.pick("b1", "b2", "eps"),
  )
  return Built(tx)


def _nvidia(setup: Setup) -> Built:
  s, adaptive = setup.settings, {}
  if "second_moment" in s:
    kinds = dict(normuon="longer", adamuon="entries", namo="matrix")
    adaptive = dict(variance=kinds[s["second_moment"]])
    adaptive |= setup.pick("b2", "eps")
  extra, scale = s["extra_scale"], {}
  if s["scale"] == "spectral":
    scale, extra = dict(consistent_rms=extra), 1.0
  elif s["scale"] == "unit_rms_norm":
    scale = dict(scale="unit")
  direction = optim.scale_by_muon(
    s["beta"],
    nesterov=s["nesterov"],
    ns_coeffs=_LISTS.get(s["coefficients"], s["coefficients"]),
    ns_steps=s["ns_steps"],
    ns_eps=_TINY,
    dimension_numbers=setup.dims,
    **scale,
    **adaptive,
  )
  direction = optax.chain(direction, optax.scale(extra))
  rate, amount = setup.learning_rate, s["weight_decay"]
  decay = optim.Decay(amount)
  if s["decay_mode"] == "independent":
    decay = optim.Decay(amount, coupling="none")
  elif s["decay_mode"] == "palm":
    decay = optim.Decay(_times(amount, rate))
  elif s["decay_mode"] == "l2":
    added = optax.add_decayed_weights(amount)
    direction, decay = optax.chain(added, direction), optim.Decay(0.0)
  rules = dict(
    fixed=lambda: optim.fixed_radius(s["radius"]),
    relative=lambda: optim.relative_step,
    brake=lambda: optim.radial_brake(s["outward"], s["inward"]),
  )
  if s.get("norm", "none") == "none":
    return Built(optim.descend(direction, rate, decay))
  tx = optim.on_sphere(
    direction,
    rate,
    rule=rules[s["norm"]](),
    dimension_numbers=setup.dims,
    weight_decay=decay,
  )
  return Built(tx)


def _times(amount, rate):
  if callable(rate):
    return lambda count: amount * rate(count)
  return amount * rate


def _dion(setup: Setup) -> Built:
  s = setup.settings
  pieces = {leaf: list(sizes) for leaf, sizes in s["split"].items()}
  for leaf, heads in s["heads"].items():
    axis = setup.dims[leaf].side_axes[1][0]
    pieces[leaf] = [setup.shapes[leaf][axis] // heads] * heads
  dims = {}
  for leaf, d in setup.dims.items():
    for i in range(len(pieces.get(leaf, [0]))):
      dims[f"{leaf}/{i}"] = d
  scales = dict(
    spectral_norm=dict(scale="unit"), rms_norm=dict(consistent_rms=0.2)
  )
  tx = optim.normuon(
    setup.learning_rate,
    weight_decay=optim.Decay(s["weight_decay"], cautious=s["cautious"]),
    nesterov=s["nesterov"],
    ns_coeffs="dion",
    # Their momentum is a sum, and 1.02 is in our first triple.
    ns_eps=1e-8 * (1 - s["beta"]) / 1.02,
    dimension_numbers=dims,
    **scales[s["scale"]],
    **setup.pick("beta", "b2"),
  )
  return Built(_in_pieces(tx, pieces, setup.dims))


def _in_pieces(tx, pieces, dims):
  """A transform that sees pieces of the outputs as parameters of their own."""

  def axis(leaf):
    return dims[leaf].side_axes[1][0]

  def cut(tree):
    parts = {}
    for leaf, x in tree.items():
      sizes = pieces.get(leaf, [x.shape[axis(leaf)]])
      ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
      for i, part in enumerate(jnp.split(x, ends, axis(leaf))):
        parts[f"{leaf}/{i}"] = part
    return parts

  def joined(parts, like):
    return {
      leaf: jnp.concatenate(
        [parts[f"{leaf}/{i}"] for i in range(len(pieces.get(leaf, [0])))],
        axis(leaf),
      )
      for leaf in like
    }

  def update(updates, state, params=None):
    parts, state = tx.update(cut(updates), state, cut(params))
    return joined(parts, updates), state

  return optax.GradientTransformation(lambda p: tx.init(cut(p)), update)


def _adamc(setup: Setup) -> Built:
  s = setup.settings
  decay = optim.Decay(
    s["weight_decay"],
    normalized={leaf: leaf in s["normalized"] for leaf in setup.dims},
    peak=s["learning_rate"],
  )
  adam = _early_eps(s["b1"], s["b2"], s["eps"])
  return Built(optim.descend(adam, setup.learning_rate, decay))


def _early_eps(b1, b2, eps):
  """Adam with eps added to the root before the root's bias is corrected."""
  return optax.inject_hyperparams(optax.scale_by_adam)(
    b1, b2, eps=lambda count: eps / jnp.sqrt(1 - b2 ** (count + 1))
  )


def _dims(setup: Setup) -> dict:
  """Matrices are what the case says; all other leaves are Adam's."""
  leaves = setup.settings["muon_leaves"]
  return {k: d if k in leaves else None for k, d in setup.dims.items()}


METHODS = {
  "muon": _keller,
  "moonlight": _moonlight,
  "torch_muon": _torch,
  "muon_h": _muon_h,
  "adam_h": _adam_h,
  "normuon": _normuon,
  "normuon_h": _normuon_h,
  "nvidia_muon": _nvidia,
  "nvidia_adaptive_muon": _nvidia,
  "dion_normuon": _dion,
  "adamc": _adamc,
}
LAYOUTS = {
  "muon": ("kernels", "stacked"),
  "normuon": ("stacked",),
  "dion_normuon_split": ("kernels",),
  "adam_h": ("stacked",),
}
