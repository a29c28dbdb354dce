"""SOAP with Gram and KL factors for the authors' settings; see `authors.py`.

What their programs have and our defaults have not:

- NVIDIA's bases know the gradient that is rotated into them; its KL factors
  start with a division by eps, and its eigenvalues are quotients.
- KL-Methods starts eigenvalues at 0.1 and caps their inverse roots.
- Track 3's KL-SOAP-H begins with the whole first Gram matrix, not with the
  share 1 - beta of it.
"""

import jax
import jax.numpy as jnp
import optax
from oracles.authors_built import Built, Setup

import optim
from optim.matrices import eigenbasis

# Their bases keep V' when they turn, and all are refreshed at once.
_OFFICIAL = dict(stagger=False, square_fields=())


def _nvidia(setup: Setup) -> Built:
  s = dict(factors="kl", refresh="eigh") | setup.settings
  rate, lam = setup.learning_rate, s["weight_decay"]
  kind = (
    "quotients" if s.get("factor_bias_correction", True) else "raw_quotients"
  )
  direction = optim.scale_by_soap(
    s["b1"],
    s["b2"],
    s["shampoo_beta"],
    s["eps"],
    precondition_frequency=s.get("frequency", 1),
    refresh=s["refresh"],
    refresh_steps=s.get("power_steps", 1) if s["refresh"] == "qr" else None,
    refresh_order="before",
    first_step="use_current",
    factors=s["factors"],
    eigenvalues=optim.Eigenvalues(
      first_gram=s["eps"], largest_inverse_root=s["eps"] ** -0.5, kind=kind
    ),
    nesterov=s.get("nesterov", False),
    bias_correction=s.get("bias_correction", True),
    max_update_rms=s.get("max_update_rms") or None,
    **_options(setup),
    **_OFFICIAL,
  )

  def palm(count):
    return lam * (rate(count) if callable(rate) else rate)

  decays = dict(
    decoupled=lam,
    independent=optim.Decay(lam, coupling="none"),
    palm=palm,
    l2=0.0,
  )
  tx = optim.descend(direction, rate, decays[s["decay_mode"]])
  if s["decay_mode"] == "l2":
    tx = optax.chain(optax.add_decayed_weights(lam), tx)

  def init(params):
    # Their factors are corrected, ours are when they are used.
    share = 1 - s["shampoo_beta"] if kind == "quotients" else 1.0
    state = warm_state(setup, tx.init(params), params, factor_scale=share)

    def counted(soap):  # As if one call had been made.
      inner = soap.inner._replace(count=jnp.ones_like(soap.inner.count))
      return soap._replace(inner=inner)

    return _within(counted, state)

  return Built(tx, init if setup.warm else None)


def _kl_methods(setup: Setup) -> Built:
  s = setup.settings
  largest = s["largest_inverse_root"]
  cap = None
  if largest is not None:
    cap = lambda n: max(10, min(n, largest))  # noqa: E731
  eigenvalues = optim.Eigenvalues(
    start=s["initial_eigenvalue"],
    first_gram=1.0,
    largest_inverse_root=cap,
    damping=s["eps"] if s["damped_factors"] else 0.0,
  )
  beta = s["b2"] if s["shampoo_beta"] < 0 else s["shampoo_beta"]
  common = dict(
    b1=s["b1"],
    b2=s["b2"],
    shampoo_beta=beta,
    eps=s["eps"],
    precondition_frequency=s["frequency"],
    eigenvalues=eigenvalues,
    update_rms=1.0 if s["normalize"] else None,
    **_options(setup),
  )
  if s["second_moment"]:
    direction = optim.scale_by_soap(
      factors="kl",
      first_step="skip",
      bias_correction=False,
      **common,
      **_OFFICIAL,
    )
  else:
    direction = optim.scale_by_kl_shampoo(
      relative_eps=False, stagger=False, **common
    )
    if setup.warm:
      direction = _with_momentum_outside(setup, direction)
  tx = optim.descend(
    direction,
    setup.learning_rate,
    s["weight_decay"],
    order="official",
    skip_first=not setup.warm,
  )

  def init(params):
    return warm_state(setup, tx.init(params), params)

  return Built(tx, init if setup.warm else None)


def _on_spheres(setup: Setup) -> Built:
  s, kl = setup.settings, setup.settings["method"] == "kl_soap_h"
  beta, options = s.get("shampoo_beta", s["b2"]), {}
  if kl:
    options["eigenvalues"] = optim.Eigenvalues(
      # A first Gram matrix that is not multiplied by 1 - beta.
      start=0.1, first_gram=1 - beta, largest_inverse_root=4000.0
    )  # fmt: skip
  tx = optim.soap_h(
    setup.learning_rate,
    b1=s["b1"],
    b2=s["b2"],
    shampoo_beta=beta,
    eps=s["eps"],
    precondition_frequency=s["frequency"],
    factors="kl" if kl else "gram",
    first_step="skip" if kl else "use_current",
    bias_correction=False,
    **options,
    **_options(setup),
    **_OFFICIAL,
  )
  return Built(tx if kl else _refreshed_earlier(tx))


def _refreshed_earlier(tx):
  """Refreshes after calls f, 2 f, ... from 1, ours after calls f + 1, ..."""

  def update(updates, state, params):
    first = state[0].count == 0
    updates, state = tx.update(updates, state, params)
    soap = state[0]._replace(count=state[0].count + first)
    return updates, (soap, *state[1:])

  return optax.GradientTransformation(tx.init, update)


def _with_momentum_outside(setup: Setup, tx):
  """Keeps M in no basis, and gives the state its turned M' at each call.

  The bases of a warm start are orthonormal to float32 only. The authors turn M
  at each call, we turn M' from basis to basis: where the first basis is not
  orthonormal, the two differ by 2e-9.
  """
  b1 = setup.settings["b1"]

  def update(updates, state, params):
    state, average = state
    grads = _plan(setup, updates).split(updates)
    average = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, average, grads)
    updates, state = tx.update(updates, state, params)
    turned = eigenbasis.rotate(
      average, state.kronecker, optim.Precision(), transpose=True
    )
    momentum = type(state.momentum)(turned.stacks)
    return updates, (state._replace(momentum=momentum), average)

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, _plan(setup, params).split(params))
    return tx.init(params), zeros

  return optax.GradientTransformation(init, update)


def _plan(setup: Setup, tree):
  options = {k: v for k, v in _options(setup).items() if v is not None}
  return optim.make_plan(tree, **options)


def _options(setup: Setup) -> dict:
  return dict(dimension_numbers=setup.dims, block_size=setup.block_size)


def _within(function, state):
  """The state with function(state of the direction)."""
  is_direction = lambda x: hasattr(x, "kronecker")  # noqa: E731
  return jax.tree.map(
    lambda x: function(x) if is_direction(x) else x,
    state,
    is_leaf=is_direction,
  )


def warm_state(setup: Setup, state, params, factor_scale=1.0):
  """The state with the factors, bases and eigenvalues of a case, after a call.

  All matrices of a leaf get the same: the layouts repeat the case's own.
  """
  plan = _plan(setup, params)

  def warm(direction):
    kept = _warm_factors(setup, plan, direction.kronecker, factor_scale)
    count = jnp.ones_like(direction.count)
    return direction._replace(kronecker=kept, count=count)

  return _within(warm, state)


def _warm_factors(setup: Setup, plan, state, factor_scale):
  kept = type(state)(state)
  for bucket in plan.buckets:
    old = kept[bucket.name]
    factors, bases, scales = [], [], []
    for side, name in enumerate(("inputs", "outputs")):
      if old.factors[side] is None:
        for part in (factors, bases, scales):
          part.append(None)
        continue

      def load(what, like, side=name, bucket=bucket):
        rows = [
          jnp.asarray(setup.warm[_leaf(piece)][side][what], like.dtype)
          for piece in bucket.pieces
          for _ in range(piece.count)
        ]
        rows += [jnp.zeros_like(rows[0])] * (bucket.size - len(rows))
        return jnp.stack(rows)

      factors.append(load("factor", old.factors[side]) * factor_scale)
      bases.append(load("basis", old.derived[side]))
      if old.scales is not None:
        scales.append(load("eigenvalues", old.scales[side]))
    new = dict(factors=tuple(factors), derived=tuple(bases))
    if old.scales is not None:
      new["scales"] = tuple(scales)
    kept[bucket.name] = old._replace(**new)
  return kept


def _leaf(piece) -> str:
  """The name of a leaf from its path, "['wide']"."""
  return piece.path[2:-2]


METHODS = {
  "nvidia_soap": _nvidia,
  "rekls": _nvidia,
  "kl": _kl_methods,
  "soap_h": _on_spheres,
  "kl_soap_h": _on_spheres,
}
# Of the trees of these cases, only "square" can be cut into blocks.
LAYOUTS = {
  "nv_soap_nesterov": ("blocks",),
  "nv_kl_soap_warm": ("kernels",),
  "kl_shampoo_f3": ("kernels", "blocks"),
  "kl_shampoo_warm": ("stacked",),
  "kl_soap_f3": ("stacked",),
  "kl_soap_h_f2": ("stacked",),
  "soap_h_f3": ("kernels",),
}
