"""Where Adam, GN^-1 and GN^-1/2 differ, and where they do not.

The statements of Liu et al., 2025, https://arxiv.org/abs/2510.13680, in the
forms that can be computed by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim

SIZES = (1, 4, 16, 64, 256)
# Which block each parameter is in; the model's outputs are the blocks' sums.
BLOCK_P = np.repeat(np.arange(len(SIZES)), SIZES)
START_K = np.random.default_rng(1).normal(size=len(SIZES))


def _blocks(w_P, batch):
  return jax.ops.segment_sum(w_P, BLOCK_P, len(SIZES))


def _half_square(outputs, batch):
  return jnp.sum(jnp.square(outputs)) / 2


def _descend(tx, params, model_fn, loss_fn, rates):
  """The losses before each of some steps and after the last."""

  def loss(p):
    return loss_fn(model_fn(p, None), None)

  def step(carry, rate):
    p, state = carry
    before, grads = jax.value_and_grad(loss)(p)
    u, state = tx.update(grads, state, p, curvature_batch=())
    return (p - rate * u, state), before

  (p, _), losses = jax.lax.scan(step, (params, tx.init(params)), rates)
  return jnp.append(losses, loss(p))


def _block_run(power, estimator, rates):
  tx = optim.scale_by_diagonal_preconditioner(
    power, "identity", estimator, model_fn=_blocks, loss_fn=_half_square,
    decay=0.0, eps=0.0,
  )  # fmt: skip
  with jax.enable_x64(True):  # Squares of tiny gradients.
    start_P = jnp.asarray(START_K[BLOCK_P])
    run = jax.jit(lambda r: _descend(tx, start_P, _blocks, _half_square, r))
    return np.asarray(run(jnp.asarray(rates)))


def _gradient_descent(rate, steps):
  """Of blocks of ones: block j of size d contracts by 1 - rate d a step."""
  d_K = np.array(SIZES, float)
  left_K = START_K * (1 - rate * d_K) ** steps
  return np.sum((d_K * left_K) ** 2) / 2


@pytest.mark.parametrize("power", [-1.0, -0.5])
def test_s2_gauss_newton_in_the_wrong_basis_is_gradient_descent(power):
  # The diagonal of blocks of ones is 1, so nothing is rescaled.
  losses = _block_run(power, "ggn", np.full(20, 0.007))
  wanted = [_gradient_descent(0.007, t) for t in range(21)]
  np.testing.assert_allclose(losses, wanted, rtol=1e-10)


def test_s2_adam_in_the_wrong_basis_does_not_see_the_sizes():
  rates = np.linspace(1e-3, 2 / 256, 2001)
  best = {t: min(_gradient_descent(r, t) for r in rates) for t in (50, 200)}
  assert _gradient_descent(0, 0) == pytest.approx(3.0e4, rel=0.02)
  assert 0.25 < best[50] < 0.46  # Theory: of the order of (255 / 257)^100.
  assert 2e-3 < best[200] < 3.5e-3
  for steps, factor, bound in ((50, 0.55, 1e-20), (200, 0.75, 1e-40)):
    decaying = 0.6 * factor ** np.arange(steps)
    assert _block_run(-0.5, "empirical_fisher", decaying)[-1] < bound


def _logistic(w, batch):
  return w


def _logistic_loss(outputs, batch):
  return jnp.sum(jax.nn.softplus(outputs) - 0.9 * outputs)


def _logistic_excess(power, estimator, start, decays):
  """Excess loss after 30 steps, for a grid of rates."""
  tx = optim.scale_by_diagonal_preconditioner(
    power, "identity", estimator, model_fn=_logistic, loss_fn=_logistic_loss,
    decay=0.0, eps=1e-8 if estimator == "empirical_fisher" else 0.0,
  )  # fmt: skip
  least = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
  schedule = 1 - np.arange(30) / 30 if decays else np.ones(30)
  with jax.enable_x64(True):

    def end(peak):
      losses = _descend(
        tx, jnp.asarray([start]), _logistic, _logistic_loss,
        peak * schedule,
      )  # fmt: skip
      return losses[-1] - least

    excess = jax.jit(jax.vmap(end))(jnp.asarray(RATES))
  return np.where(np.isfinite(excess), excess, np.inf)


RATES = np.logspace(-4, 1, 101)


def test_s3_one_rate_serves_saturation_and_optimum_badly():
  runs = {
    (name, start): _logistic_excess(power, estimator, start, name == "adam")
    for name, power, estimator in (
      ("gn", -1.0, "ggn"),
      ("root", -0.5, "ggn"),
      ("adam", -0.5, "empirical_fisher"),
    )
    for start in (-8.0, -2.0)
  }
  at_one = int(np.argmin(np.abs(RATES - 1)))
  best = {key: np.min(excess) for key, excess in runs.items()}
  # From the saturated start Newton's only good rates are 200 times too small.
  assert RATES[np.argmin(runs["gn", -8.0])] == pytest.approx(0.004, rel=0.1)
  assert runs["gn", -8.0][at_one] > 1
  assert best["adam", -8.0] < 1e-5 < best["root", -8.0] < best["gn", -8.0]
  # From near the optimum all are fine, but Newton's whole step still is not.
  assert all(best[name, -2.0] < 1e-6 for name in ("gn", "root", "adam"))
  assert runs["gn", -2.0][at_one] > 1


_RNG = np.random.default_rng(0)
TURN, AXES = (np.linalg.qr(_RNG.normal(size=(6, 6)))[0] for _ in range(2))
VARIANCE_D = 1 / (1.0 + np.arange(6)) ** 2
ERROR_D = _RNG.normal(size=6)


@jax.jit
@jax.vmap
def _sampled_moments(key, batch, noise):
  """The transform's nu for one batch, of up to 32 samples."""
  tx = optim.scale_by_diagonal_preconditioner(basis=TURN, decay=0.0)
  x_key, noise_key = jax.random.split(key)
  root_DD = np.sqrt(VARIANCE_D)[:, None] * AXES.T
  x_BD = jax.random.normal(x_key, (32, 6)) @ root_DD
  label_B = noise * jax.random.normal(noise_key, (32,))
  used_B = jnp.arange(32) < batch
  grads = jax.grad(
    lambda e: jnp.sum(used_B * jnp.square(x_BD @ e - label_B)) / (2 * batch)
  )(jnp.asarray(ERROR_D, jnp.float32))
  return tx.update(grads, tx.init(grads))[1].nu


@pytest.mark.parametrize("batch", [1, 4, 32])
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_s4_second_moment_of_gradients(batch, noise):
  # x ~ N(0, S), y = w* x + noise, error e: for any basis U and m = U^T S e,
  #   E (U_i^T g)^2 = m_i^2 + (2 L H_ii + m_i^2) / B,  2 L = e S e + noise^2.
  keys = jax.random.split(jax.random.key(batch), 50_000)
  same = [jnp.full(len(keys), x) for x in (batch, noise)]
  samples = np.asarray(_sampled_moments(keys, *same), np.float64)
  s_DD = AXES * VARIANCE_D @ AXES.T
  m_D = TURN.T @ s_DD @ ERROR_D
  twice_loss = ERROR_D @ s_DD @ ERROR_D + noise**2
  diagonal_D = np.diag(TURN.T @ s_DD @ TURN)
  wanted_D = m_D**2 + (twice_loss * diagonal_D + m_D**2) / batch
  error = samples.std(axis=0) / np.sqrt(len(keys))
  np.testing.assert_array_less(
    np.abs(samples.mean(axis=0) - wanted_D), 4.5 * error
  )
  if batch == 1:  # Adam is GN^-1/2 up to a number and a factor sqrt(3).
    ratio_D = wanted_D / (twice_loss * diagonal_D)
    assert np.all(ratio_D >= 1)
    assert np.all(ratio_D <= 3)
