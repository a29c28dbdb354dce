"""Numbers that users pass: in few bits, as schedules, at the ends of a type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

INT4 = optim.Quantizer(optim.INT4)
ALIASES = {
  "soap": functools.partial(optim.soap, first_step="identity"),
  "shampoo": optim.shampoo,
  "muon": optim.muon,
  "lotion_adamw": lambda rate, **options: optim.lotion_adamw(
    rate, INT4, 0.0, **options
  ),
}
STATIC = ("precondition_frequency", "max_precond_dim", "ns_steps", "quantizer")


def _grads(seed, dtype=jnp.float32, scale=1.0):
  rng = np.random.default_rng(seed)
  w, b = rng.normal(size=(4, 3)) * scale, rng.normal(size=3) * scale
  return dict(w=jnp.asarray(w, dtype), b=jnp.asarray(b, dtype))


def _run(tx, steps=4, dtype=jnp.float32, scale=1.0):
  """Updates and the last state, from fixed parameters."""
  params = _grads(99, dtype)
  state, update, made = tx.init(params), jax.jit(tx.update), []
  for step in range(steps):
    updates, state = update(_grads(step, dtype, scale), state, params)
    made.append(updates)
  return made, state


def _finite(tree):
  return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


# --- Injected numbers in few bits --------------------------------------------


@pytest.mark.parametrize("make", [optim.soap, optim.shampoo])
def test_an_injected_decay_that_rounds_to_one_says_so(make):
  static = ("precondition_frequency", "max_precond_dim")
  params = _grads(0, jnp.bfloat16)
  wrong = optax.inject_hyperparams(make, static_args=static)
  with pytest.raises(ValueError, match="b2=1.0.*bfloat16.*hyperparam_dtype"):
    wrong(learning_rate=1e-2, b2=0.999).init(params)
  right = optax.inject_hyperparams(
    make, static_args=static, hyperparam_dtype=jnp.float32
  )(learning_rate=1e-2, b2=0.999)
  made, state = _run(right, dtype=jnp.bfloat16)
  assert _finite(made)
  np.testing.assert_allclose(state.hyperparams["b2"], 0.999, rtol=1e-6)


def test_lotion_checks_the_numbers_of_adam():
  make = optax.inject_hyperparams(
    optim.lotion_adamw, static_args=("quantizer",)
  )
  tx = make(learning_rate=1e-2, quantizer=INT4, strength=0.1, b2=0.999)
  with pytest.raises(ValueError, match="b2=1.0.*hyperparam_dtype"):
    tx.init(_grads(0, jnp.bfloat16))
  for name, value in (("b1", 1.0), ("b2", -0.5), ("eps", -1.0)):
    with pytest.raises(ValueError, match=f"{name}={value}"):
      optim.lotion_adamw(1e-2, INT4, 0.1, **{name: value})


def test_injected_decays_in_bfloat16_correct_the_bias_in_float32():
  """1 - b2^t of bfloat16 numbers has two digits; the update needs more."""
  make = optax.inject_hyperparams(optim.scale_by_soap, static_args=STATIC[:2])
  b2 = float(jnp.asarray(0.96, jnp.bfloat16))  # 0.9609375
  tx = make(b1=0.5, b2=0.96, shampoo_beta=0.5, first_step="identity")
  made, state = _run(tx, dtype=jnp.bfloat16)
  assert state.hyperparams["b2"].dtype == jnp.bfloat16
  m = v = np.zeros(3)
  for step, updates in enumerate(made, start=1):
    g = np.asarray(_grads(step - 1, jnp.bfloat16)["b"], np.float64)
    m, v = 0.5 * m + 0.5 * g, b2 * v + (1 - b2) * g**2
    wanted = m / (1 - 0.5**step) / np.sqrt(v / (1 - b2**step))
    np.testing.assert_allclose(
      np.asarray(updates["b"], np.float64), wanted, rtol=2**-8
    )


# --- Schedules ---------------------------------------------------------------


@pytest.mark.parametrize("name", ALIASES)
def test_weight_decay_may_be_a_schedule_of_the_calls(name):
  make, values = ALIASES[name], [0.3, 0.0, 0.1, 0.2]
  schedule = lambda count: jnp.asarray(values)[count]  # noqa: E731
  made, _ = _run(make(1e-2, weight_decay=schedule))
  plain, _ = _run(make(1e-2, weight_decay=0.0))
  params = _grads(99)
  for step, (updates, bare) in enumerate(zip(made, plain, strict=True)):
    for key, w in params.items():
      np.testing.assert_allclose(
        updates[key],
        bare[key] - 1e-2 * values[step] * w,
        rtol=1e-5,
        atol=1e-7,
      )


@pytest.mark.parametrize("name", ALIASES)
def test_a_negative_decay_is_named(name):
  with pytest.raises(ValueError, match="weight_decay=-0.1 must be >= 0"):
    ALIASES[name](1e-2, weight_decay=-0.1)


# --- A derivative through the update -----------------------------------------


@pytest.mark.parametrize("dtype", ["float32"])
def test_eps_root_is_that_of_adam(dtype):
  tx = optim.scale_by_soap(
    0.9, 0.99, eps=1e-3, eps_root=1e-2, max_precond_dim=1,
    first_step="identity",
  )  # fmt: skip
  made, _ = _run(tx)
  reference = optax.scale_by_adam(0.9, 0.99, 1e-3, 1e-2)
  wanted, _ = _run(reference)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), made, wanted
  )


@pytest.mark.parametrize(
  "tx",
  [
    optim.scale_by_soap(eps_root=1e-8),
    optim.scale_by_soap(eps_root=1e-8, first_step="identity", normalize=True),
    optim.scale_by_shampoo(eps_root=1e-8),
    optim.scale_by_muon(adam_eps_root=1e-8),
    optim.lotion_adamw(1.0, INT4, 0.0, eps_root=1e-8, weight_decay=0.0),
  ],
)
def test_the_update_has_a_derivative_where_gradients_are_zero(tx):
  """Central differences in float64; an entry's gradient is 0 throughout."""

  def length(scale):
    params = jax.tree.map(lambda x: x.astype(scale.dtype), _grads(99))
    state, total = tx.init(params), 0.0
    for step in range(2):
      grads = jax.tree.map(
        lambda x: scale * x.astype(scale.dtype), _grads(step)
      )
      grads["b"] = grads["b"].at[0].set(0.0)
      updates, state = tx.update(grads, state, params)
      weights = _grads(7)
      total += sum(jnp.sum(weights[k] * updates[k]) for k in updates)
    return total

  with jax.enable_x64(True):
    at = jnp.asarray(1e-3, jnp.float64)
    slope = jax.jit(jax.grad(length))(at)
    ahead, behind = (jax.jit(length)(at + h) for h in (1e-7, -1e-7))
    wanted = (ahead - behind) / 2e-7
  assert np.isfinite(slope)
  np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-4)


# --- The ends of a type ------------------------------------------------------


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize(
  ("scale", "dtype"),
  [
    (1e37, "float32"),
    (1e25, "float32"),
    (1e-25, "float32"),
    (1e-37, "float32"),
    (1e4, "float16"),
    (1e-7, "float16"),
  ],
)
def test_finite_gradients_give_finite_updates(name, scale, dtype):
  made, state = _run(
    ALIASES[name](1.0, weight_decay=0.0), dtype=dtype, scale=scale
  )
  assert _finite(made)
  assert _finite([x for x in jax.tree.leaves(state)])
  large = [float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(made)]
  assert max(large) < 10  # Steps of a rate of 1, whatever the scale.
  counts = optim.refresh_counts(state)
  if counts is not None and scale > 1e20:  # Squares overflow: refused, counted.
    assert int(counts.rejections) == len(made)


@pytest.mark.parametrize("scale", [1e4, 6e-8])
@pytest.mark.parametrize("name", ["soap", "shampoo", "lotion_adamw"])
def test_float16_gradients_are_those_of_adam_on_vectors(name, scale):
  """Squares of the largest and the least float16 numbers exist in float32."""
  options = dict(b1=0.9, b2=0.95, eps=0.0, weight_decay=0.0)
  made, _ = _run(ALIASES[name](1.0, **options), dtype="float16", scale=scale)
  m = v = np.zeros(3)
  for step, updates in enumerate(made, start=1):
    g = np.asarray(_grads(step - 1, "float16", scale)["b"], np.float64)
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
    root = np.sqrt(v / (1 - 0.95**step))
    wanted = -m / (1 - 0.9**step) / np.where(root > 0, root, 1)
    keep = root > 0
    np.testing.assert_allclose(
      np.asarray(updates["b"], np.float64)[keep], wanted[keep], rtol=2e-3
    )


@pytest.mark.parametrize("scale", [1e-3, 1e10, 1e30, 3e37])
def test_muon_is_right_up_to_the_largest_numbers(scale):
  """The orthogonal factor of a matrix does not depend on its scale."""
  made, _ = _run(optim.scale_by_muon(beta=0.0, nesterov=False), 1, scale=scale)
  wanted, _ = _run(optim.scale_by_muon(beta=0.0, nesterov=False), 1)
  np.testing.assert_allclose(made[0]["w"], wanted[0]["w"], rtol=1e-3, atol=1e-3)
