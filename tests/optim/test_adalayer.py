"""Adalayer: which numbers share a second moment, and when it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

_STACK = optim.DimensionNumbers((1, 2), stack=0)


def _gradients(*shape, steps=4):
  rng = np.random.default_rng(3)
  return list(jnp.asarray(rng.normal(size=(steps, *shape)), jnp.float32))


def _directions(tx, grads):
  """The updates of some gradients in turn, and the last state."""
  state, found = tx.init(grads[0]), []
  for g in grads:
    updates, state = tx.update(g, state)
    found.append(updates)
  return found, state


def _adalayer(label="other", **options):
  return optim.scale_by_adalayer(labels=label, **options)


def _same(actual, wanted):
  for x, y in zip(actual, wanted, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("label", "shape"), [("head", (1, 5)), ("embedding", (5, 1)), ("other", ())]
)
def test_blocks_of_one_number_are_adam(label, shape):
  grads = _gradients(*shape)
  ours, _ = _directions(_adalayer(label, eps=1e-3), grads)
  wanted, _ = _directions(optax.scale_by_adam(0.9, 0.95, 1e-3), grads)
  _same(ours, wanted)


@pytest.mark.parametrize(
  ("label", "axes"),
  [("other", (0, 1)), ("norm", (0, 1)), ("head", (0,)), ("embedding", (1,))],
)
def test_the_first_step_is_the_gradient_over_the_root_mean_square(label, axes):
  (g,) = _gradients(4, 6, steps=1)
  (ours,), _ = _directions(_adalayer(label), [g])
  mean = jnp.mean(jnp.square(g), axis=axes, keepdims=True)
  np.testing.assert_allclose(ours, g / jnp.sqrt(mean), rtol=1e-5)


@pytest.mark.parametrize("label", ["qkv", "head", "embedding", "norm"])
def test_a_stack_is_its_matrices_one_by_one(label):
  grads = _gradients(2, 4, 6)
  stacked, _ = _directions(_adalayer(label, dimension_numbers=_STACK), grads)
  for layer in range(2):
    alone, _ = _directions(_adalayer(label), [g[layer] for g in grads])
    _same([x[layer] for x in stacked], alone)


def test_qkv_is_three_leaves_in_any_layout():
  """[layers, inputs, 3, heads, channels], cut along the axis of q, k and v."""
  grads = _gradients(2, 4, 3, 2, 5)
  numbers = optim.DimensionNumbers((1, (2, 3, 4)), stack=0)
  fused, _ = _directions(_adalayer("qkv", dimension_numbers=numbers), grads)
  numbers = optim.DimensionNumbers((1, (2, 3)), stack=0)
  for part in range(3):
    tx = _adalayer("other", dimension_numbers=numbers)
    alone, _ = _directions(tx, [g[:, :, part] for g in grads])
    _same([x[:, :, part] for x in fused], alone)


@pytest.mark.parametrize(
  ("label", "options", "moves"),
  [
    ("other", {}, False),
    ("qkv", {}, False),
    ("head", {}, True),
    ("head", dict(update_last=False), False),
    ("norm", {}, True),
    ("norm", dict(update_norm=False), False),
    ("embedding", dict(update_last=False, update_norm=False), True),
  ],
)
def test_the_mean_counts_a_zero_and_then_freezes(label, options, moves):
  grads = _gradients(3, 3, steps=4)
  tx = _adalayer(label, t_freeze=3, **options)
  _, state = _directions(tx, grads[:3])
  frozen = state.nu.means
  squares = sum(jnp.square(g) for g in grads[:3])
  np.testing.assert_allclose(jnp.mean(frozen), jnp.mean(squares) / 4, rtol=1e-5)
  _, state = tx.update(grads[3], state)
  ema = 0.95 * jnp.mean(frozen) + 0.05 * jnp.mean(jnp.square(grads[3]))
  wanted = ema if moves else jnp.mean(frozen)
  np.testing.assert_allclose(jnp.mean(state.nu.means), wanted, rtol=1e-5)


def test_the_rest_is_sgd_and_the_ends_have_their_own_rate():
  labels = dict(head="head", gain="norm", w="other", attention="qkv")
  shapes = dict(head=(3, 4), gain=(4,), w=(2, 2), attention=(2, 3))
  params = {k: jnp.ones(s) for k, s in shapes.items()}
  steps = {k: _gradients(*s) for k, s in shapes.items()}
  grads = [{k: g[t] for k, g in steps.items()} for t in range(4)]
  tx = optim.adalayer(
    0.5, labels=labels, sgd_elsewhere=True, learning_rate_last=0.25,
    weight_decay=0.1,
  )  # fmt: skip
  state = tx.init(params)
  whole, _ = _directions(optim.scale_by_adalayer(labels=labels), grads)
  sgd, _ = _directions(optax.ema(0.9, debias=True), grads)
  for t, g in enumerate(grads):
    updates, state = tx.update(g, state, params)
    for leaf, label in labels.items():
      ends = label in ("head", "norm")
      rate, u = (0.25, whole[t]) if ends else (0.5, sgd[t])
      np.testing.assert_allclose(
        updates[leaf], -rate * (u[leaf] + 0.1 * params[leaf]), rtol=2e-5
      )


def test_labels_may_be_a_function_of_the_parameters():
  def labels(params):
    return jax.tree.map(lambda x: "head" if x.ndim == 2 else "norm", params)

  params = dict(w=jnp.ones((2, 3)), gain=jnp.ones(4))
  nu = optim.scale_by_adalayer(labels=labels).init(params).nu
  assert {k: v.means.shape for k, v in nu.items()} == dict(w=(3,), gain=())


def test_state_words_are_those_of_the_table():
  labels = dict(attention="qkv", w="other", head="head")
  shapes = dict(attention=(2, 8, 24), w=(8, 32), head=(8, 50))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
  size = sum(x.size for x in params.values())
  numbers = dict(attention=_STACK)
  for elsewhere, blocks in ((False, 2 * 3 + 1 + 50), (True, 50)):
    tx = optim.scale_by_adalayer(
      labels=labels, dimension_numbers=numbers, sgd_elsewhere=elsewhere
    )
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    words = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert words == size + blocks


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(labels=dict(w="tail")), r"labels\['w'\]='tail' is not known"),
    (dict(labels=dict(v="head")), r"no label for leaf \['w'\]"),
    (dict(labels=dict(w="qkv")), "cannot be cut into three equal parts"),
    (
      dict(labels=dict(w="head"), dimension_numbers=dict(w=None)),
      "Pass dimension_numbers with an entry",
    ),
    (dict(t_freeze=0), "t_freeze=0 must be >= 1"),
    (dict(t_freeze=2, sgd_elsewhere=True), "Take one of the two"),
    (dict(learning_rate_last=-1.0), "learning_rate_last=-1.0 must be >= 0"),
  ],
)
def test_a_bad_argument_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    optim.adalayer(0.1, **options).init(dict(w=jnp.ones((3, 4))))
