"""The end of a chain, on SOAP: decoupled decay and the learning rate."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.contract import TRANSFORMS, make_params

import optim


def _grads(steps):
  rng = np.random.default_rng(0)
  scale = (1.0 + np.arange(4)) ** -0.7
  return [
    (rng.normal(size=(4, 4)) * scale).astype(np.float32) for _ in range(steps)
  ]


def _run(tx, grads, params=None):
  """Updates for a list of gradients."""
  params = jnp.zeros_like(grads[0]) if params is None else params
  state, result = tx.init(params), []
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update(g, state, params)
    result.append(updates)
  return result


def test_first_call_neither_steps_nor_decays():
  params = jnp.ones((4, 4))
  for order in ("optax", "official"):
    tx = optim.soap(0.1, weight_decay=0.5, decay_order=order, first_step="skip")
    first, second = _run(tx, _grads(2), params)
    np.testing.assert_array_equal(first, 0)
    assert np.all(np.asarray(second) != 0)


def test_decay_orders():
  params, grads = jnp.full((4, 4), 2.0), _grads(2)
  rate, decay = 0.1, 0.5
  new = {}
  for order in ("optax", "official"):
    tx = optim.soap(rate, weight_decay=decay, decay_order=order)
    updates = _run(tx, grads, params)
    new[order] = params + updates[-1]
  u = _run(optim.scale_by_soap(), grads)[-1]
  np.testing.assert_allclose(
    new["optax"], params - rate * (u + decay * params), rtol=1e-5
  )
  np.testing.assert_allclose(
    new["official"], (params - rate * u) * (1 - rate * decay), rtol=1e-5
  )


def test_schedule_counts_calls():
  grads = _grads(3)

  def schedule(count):
    return 10.0**-count

  scaled = _run(optim.soap(schedule, weight_decay=0.0), grads)
  plain = _run(optim.scale_by_soap(), grads)
  for t, (a, b) in enumerate(zip(scaled, plain, strict=True)):
    np.testing.assert_allclose(a, -(10.0**-t) * b, rtol=1e-5)


def _decayed(decay, params, grads, rate=0.1, calls=1, **options):
  """Parameters lost to a decay at the last of some calls, beside -rate * u."""
  tx = optim.descend(optax.identity(), rate, decay, **options)
  state = tx.init(params)
  for _ in range(calls):
    updates, state = tx.update(grads, state, params)
  last = rate(calls - 1) if callable(rate) else rate
  return jax.tree.map(
    lambda u, g: -np.asarray(u, np.float64) - last * g, updates, grads
  )


_PARAMS = dict(a=jnp.asarray([2.0, -3.0, 4.0]), b=jnp.asarray([[5.0]]))
_GRADS = dict(a=jnp.asarray([1.0, 1.0, 0.0]), b=jnp.asarray([[-1.0]]))


def _check(lost, a, b):
  np.testing.assert_allclose(lost["a"], a, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(lost["b"], [[b]], rtol=1e-5, atol=1e-7)


def _falling(count):
  return 0.4 * 0.5**count


def test_couplings():
  # At the third call the rate is a quarter of its peak, 0.1.
  wanted = dict(rate=0.1 * 0.2, schedule=0.25 * 0.2, none=0.2)
  for coupling, share in wanted.items():
    decay = optim.Decay(0.2, coupling=coupling, peak=0.4)
    lost = _decayed(decay, _PARAMS, _GRADS, _falling, calls=3)
    _check(lost, share * np.array([2.0, -3.0, 4.0]), share * 5)


def test_official_order_decays_what_is_left_of_the_step():
  for coupling in ("rate", "none"):
    decay = optim.Decay(0.2, coupling=coupling)
    share = 0.02 if coupling == "rate" else 0.2
    lost = _decayed(decay, _PARAMS, _GRADS, order="official")
    _check(lost, share * np.array([1.9, -3.1, 4.0]), share * 5.1)


def test_cautious_decay_spares_what_the_step_lengthens():
  for coupling, share in (("rate", 0.02), ("none", 0.2)):
    decay = optim.Decay(0.2, cautious=True, coupling=coupling)
    lost = _decayed(decay, _PARAMS, _GRADS)
    # A zero step decays as without caution.
    _check(lost, share * np.array([2.0, 0.0, 4.0]), 0.0)


def test_corrected_decay_follows_the_square_of_the_rate():
  decay = optim.Decay(0.2, normalized=dict(a=False, b=True), peak=0.4)
  lost = _decayed(decay, _PARAMS, _GRADS, _falling, calls=3)
  _check(lost, 0.02 * np.array([2.0, -3.0, 4.0]), 0.02 / 4 * 5)


def test_each_label_has_its_decay():
  decay = optim.Decay(
    dict(some=0.2, none=0.0, falling=lambda count: 0.3 / (1 + count)),
    labels=lambda params: dict(a="some", b="falling"),
  )
  lost = _decayed(decay, _PARAMS, _GRADS, calls=2)
  _check(lost, 0.02 * np.array([2.0, -3.0, 4.0]), 0.1 * 0.15 * 5)
  masked = _decayed(decay, _PARAMS, _GRADS, mask=dict(a=True, b=False))
  _check(masked, 0.02 * np.array([2.0, -3.0, 4.0]), 0.0)


def test_the_kind_of_decay_reaches_the_end_of_an_alias():
  params, grads = jnp.full((4, 4), 2.0), _grads(1)
  decay = optim.Decay(0.3, coupling="none")
  plain = _run(optim.muon(0.1), grads, params)[0]
  decayed = _run(optim.muon(0.1, weight_decay=decay), grads, params)[0]
  np.testing.assert_allclose(decayed, plain - 0.3 * params, rtol=1e-5)


# These decay at a point of their own.
_NUMBERS_ONLY = {
  "lotion_adamw", "primal_averaging", "schedule_free_adamw",
  "schedule_free_sgd",
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_alias_takes_a_decay_object(name):
  row = TRANSFORMS[name]
  if "weight_decay" not in inspect.signature(row.make).parameters:
    return
  decay = optim.Decay(0.3, coupling="none", cautious=True)
  if name in _NUMBERS_ONLY:
    with pytest.raises(ValueError, match="weight_decay=Decay"):
      row.build(weight_decay=decay)
    return
  params, tx = make_params(), row.build(weight_decay=decay)
  state = jax.eval_shape(tx.init, params)
  extra = row.extra_args(params)
  update = lambda g, s, p: tx.update(g, s, p, **extra)[0]  # noqa: E731
  updates = jax.eval_shape(update, params, state, params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(coupling="half"), "coupling='half'"),
    (dict(labels=dict(a="x")), "a dict {label: number}"),
    (dict(weight_decay=dict(x=0.1)), "a dict {label: number}"),
    (dict(weight_decay=-0.1), "weight_decay=-0.1 must be >= 0"),
    (dict(peak=0.0), "peak=0.0 must be > 0"),
  ],
)
def test_wrong_decays_are_errors(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    optim.Decay(**dict(weight_decay=0.1) | arguments)


def test_missing_peaks_and_labels_are_errors():
  for decay in (
    optim.Decay(0.1, coupling="schedule"),
    optim.Decay(0.1, normalized=True),
  ):
    optim.soap(0.1, weight_decay=decay)
    with pytest.raises(ValueError, match=r"give Decay\(peak=...\)"):
      optim.soap(_falling, weight_decay=decay)
  decay = optim.Decay(dict(some=0.1), labels=dict(a="some", b="other"))
  with pytest.raises(ValueError, match="the label 'other'"):
    _decayed(decay, _PARAMS, _GRADS)
