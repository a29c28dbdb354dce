"""Fixed points of methods, sampled moments, ties, refusals: dense and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear_regression as oracle
from scipy import integrate, special, stats

import theory
from theory import adaptive, checks

LAM = np.array([1.0, 0.6, 0.2])
M0 = np.array([1.0, 2.0, 3.0])
H = np.diag(LAM)
PROBLEM = theory.from_spectrum(LAM, M0, 0.4)

METHODS = {
  "sgd": theory.sgd(0.2),
  "heavy ball": theory.heavy_ball(0.05, 0.8),
  "nesterov": theory.nesterov(0.05, 0.8),
  "asgd": theory.asgd(0.6, 0.2, 0.3, 0.1),
  "averaged": theory.averaged(theory.sgd(0.2), 0.1),
}


@pytest.mark.parametrize("batch", [1.0, 5.0])
@pytest.mark.parametrize("name", METHODS)
def test_rest_of_a_method_solves_the_dense_moment_equation(name, batch):
  """S = M S M' + noise(S) + source over all [k d, k d] moments at once."""
  method = METHODS[name]
  P, f, e = (np.asarray(x) for x in method[:3])
  size = P.shape[0] * 3
  operator = oracle.block_operator(H, P, f, e, batch)
  zero = np.zeros((size, size))
  source = oracle.block_step(zero, H, P, f, e, batch, 0.4)
  S = np.linalg.solve(np.eye(size**2) - operator, source.reshape(-1))
  read = np.kron(method.h, np.eye(3))
  wanted = oracle.risk(read @ S.reshape(size, size) @ read.T, H)
  found = theory.method_stationary(PROBLEM, method, batch)
  assert found == pytest.approx(wanted, rel=1e-9)
  chi = theory.method_chi(PROBLEM, method, batch)
  # At the point of the gradient r + sigma2 is sigma2 / (1 - chi).
  point = np.kron(e, np.eye(3))
  r = 2 * oracle.risk(point @ S.reshape(size, size) @ point.T, H)
  assert chi == pytest.approx(r / (r + 0.4), rel=1e-9)
  assert (oracle.radius(operator) < 1) == (chi < 1)


def test_weight_decay_of_each_direction_is_ridge():
  """w' = (1 - eta omega) w - eta lam (w - w*) from 0, as a loop."""
  eta, omega, T = 0.3, 0.2, 24
  wstar, w = np.sqrt(M0), np.zeros(3)
  risks = []
  for _ in range(T + 1):
    risks.append(LAM @ (w - wstar) ** 2 / 2)
    w = (1 - eta * omega) * w - eta * LAM * (w - wstar)
  quiet = PROBLEM._replace(sigma2=0.0)
  curve = theory.method_scan(
    quiet, theory.weight_decay(eta, omega), np.inf, T
  ).total
  np.testing.assert_allclose(curve, risks, rtol=1e-12)


def test_averaged_method_of_two_states_keeps_its_read_out():
  base = theory.asgd(0.6, 0.2, 0.3, 0.1)
  method = theory.averaged(base, np.full(9, 0.25))
  assert method.P.shape == (9, 3, 3)
  np.testing.assert_array_equal(method.h, [0, 0, 1])
  np.testing.assert_array_equal(method.start, [1, 1, 1])
  s, a = np.array([1.0, 1.0]), 1.0  # One direction, curvature 0.7.
  full = np.array([1.0, 1.0, 1.0])
  for t in range(9):
    s = base.P @ s - base.f * 0.7 * (base.e @ s)
    a = 0.75 * a + 0.25 * (base.h @ s)
    full = method.P[t] @ full - method.f[t] * 0.7 * (method.e @ full)
  np.testing.assert_allclose(full, [*s, a], rtol=1e-13)


def test_samples_carry_honest_standard_errors():
  """Two seeds differ by what their standard errors say."""
  method, T = theory.sgd(0.2), 10
  one, two = (
    theory.simulate(jax.random.key(k), PROBLEM, method, 3, T, 2000)
    for k in (0, 1)
  )
  gap = (one.mean - two.mean)[1:] / np.hypot(one.stderr, two.stderr)[1:]
  assert 0 < np.abs(gap).max() < 4.5
  exact = theory.method_scan(PROBLEM, method, 3, T)
  assert one.mean[0] == pytest.approx(exact.total[0], rel=1e-12)
  assert one.stderr[0] == pytest.approx(0, abs=1e-7)
  # The spread at one step from the dense second moment of the risk's law:
  # NumPy's own sampler.
  risks = oracle.simulate(
    np.random.default_rng(0), H, np.sqrt(M0), np.zeros(3), 0.4, [0.2], [3],
    20_000,
  )[1]  # fmt: skip
  assert one.stderr[1] == pytest.approx(risks.std() / 2000**0.5, rel=0.15)


@pytest.mark.parametrize("batch", [1.0, 2.0, 5.0, 32.0])
def test_slope_of_the_expected_sign_is_a_derivative(batch):
  """phi_B(rho) = 2 I((1 + rho) / 2) - 1 by central differences at 0."""
  h = 1e-5
  phi = lambda x: 2 * special.betainc(batch / 2, batch / 2, (1 + x) / 2) - 1  # noqa: E731
  with theory.float64():
    found = float(adaptive.sign_slope(jnp.asarray(batch)))
  assert found == pytest.approx((phi(h) - phi(-h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_expected_sign_of_a_batch_gradient_is_sampled(batch):
  """Given the error, E sign(g_i) is phi_B(rho_i), as at the first step."""
  rng = np.random.default_rng(0)
  delta = np.sqrt(M0)
  x = rng.standard_normal((200_000, batch, 3)) * np.sqrt(LAM)
  residual = x @ delta - np.sqrt(0.4) * rng.standard_normal(x.shape[:2])
  sign = np.sign(np.einsum("rbd,rb->rd", x, residual))
  eta = 0.05
  moved = M0 - 2 * eta * delta * sign.mean(0) + eta**2
  stderr = 2 * eta * LAM @ delta / np.sqrt(len(x))
  curve = theory.sign_scan(PROBLEM, theory.schedule([eta, eta], batch))
  assert abs(2 * curve.total[1] - LAM @ moved) < 4.5 * stderr


def test_running_second_moment_is_a_loop():
  etas, b2, batch = np.array([0.05, 0.04, 0.03, 0.02]), 0.7, 3
  z, v, risks = M0.copy(), None, []
  for eta in etas:
    risks.append(LAM @ z / 2)
    r = LAM @ z
    g2 = (1 + 1 / batch) * LAM**2 * z + LAM / batch * (r + 0.4)
    v = g2 if v is None else b2 * v + (1 - b2) * g2
    p = 1 / np.sqrt(v)
    z = z - 2 * eta * p * LAM * z + eta**2 * p**2 * g2
  risks.append(LAM @ z / 2)
  curve = theory.rms_scan(PROBLEM, theory.schedule(etas, batch), b2=b2)
  np.testing.assert_allclose(curve.total, risks, rtol=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.5, 2.0, 4.0, 9.0])
def test_logistic_moments_are_integrals(s):
  sigma = special.expit
  first = lambda x: sigma(x) * sigma(-x)  # noqa: E731
  for found, fn in zip(
    theory.logistic_moments(s),
    (first, lambda x: first(x) * (1 - 6 * first(x)), special.softplus),
    strict=True,
  ):
    wanted, _ = integrate.quad(
      lambda z, fn=fn: fn(s * z) * stats.norm.pdf(z),
      -12,
      12,
      epsabs=1e-13,
      limit=200,
    )
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_logistic_gradient_is_that_of_sampled_labels():
  rng = np.random.default_rng(1)
  w0, wstar, eta = np.array([0.5, -0.4, 0.3]), np.array([1.0, 0.8, -2.0]), 0.5
  x = rng.standard_normal((400_000, 3)) * np.sqrt(LAM)
  labels = rng.uniform(size=len(x)) < special.expit(x @ wstar)
  g = (special.expit(x @ w0) - labels)[:, None] * x
  stderr = g.std(axis=0) / np.sqrt(len(x))
  path = theory.logistic_path(LAM, w0, wstar, [eta])
  np.testing.assert_array_less(
    np.abs((w0 - path.w) / eta - g.mean(0)), 4.5 * stderr
  )


def test_logistic_adam_keeps_a_running_square():
  w, wstar, b2 = np.array([0.5, -0.4, 0.3]), np.array([1.0, 0.8, -2.0]), 0.6
  etas, start, v = [0.1, 0.05, 0.2], w, None
  for eta in etas:
    g = w - theory.logistic_path(LAM, w, wstar, [1.0]).w
    v = g**2 if v is None else b2 * v + (1 - b2) * g**2
    w = w - eta * g / np.sqrt(v)
  path = theory.logistic_path(LAM, start, wstar, etas, rule="adam", b2=b2)
  np.testing.assert_allclose(path.w, w, rtol=1e-10)


INT3 = np.arange(-3.0, 4)


def _smoothed(w, h, wstar, codes, size):
  """The smoothed risk, block by block and weight by weight."""
  total = (w - wstar) @ h @ (w - wstar) / 2
  for start in range(0, len(w), size):
    s = np.abs(w[start : start + size]).max() / codes[-1]
    for i in range(start, start + size):
      below = max(c for c in codes if c <= w[i] / s + 1e-12)
      above = min(c for c in codes if c >= w[i] / s - 1e-12)
      total += h[i, i] * (s * above - w[i]) * (w[i] - s * below) / 2
  return total


@pytest.mark.parametrize(
  "w",
  [
    [2.0, -2.0, 0.7, 0.1, 1.1, 0.3],
    [1.0, 1.0, 1.0, -0.4, 0.2, 0.9],
    [1.5, 0.2, -0.8, 0.9, -0.9, 0.9],
  ],
)
@pytest.mark.parametrize("size", [3, 6])
def test_tied_largest_weights_share_the_slope_of_their_scale(w, size):
  w = np.array(w)
  rng = np.random.default_rng(5)
  root = rng.standard_normal((6, 6))
  h, wstar = root @ root.T + np.eye(6), rng.standard_normal(6)
  gradient = theory.smoothed_risk_gradient(w, h, wstar, INT3, block_size=size)
  found = theory.smoothed_risk(w, h, wstar, INT3, block_size=size)
  assert found == pytest.approx(_smoothed(w, h, wstar, INT3, size), rel=1e-12)
  plain = h @ (w - wstar)
  for start in range(0, 6, size):
    block = slice(start, start + size)
    tied = np.abs(w[block]) == np.abs(w[block]).max()
    # All tied weights moved together move the scale and stay on the grid.
    move = np.zeros(6)
    move[block] = np.sign(w[block]) * tied
    slope = (
      _smoothed(w + 1e-6 * move, h, wstar, INT3, size)
      - _smoothed(w - 1e-6 * move, h, wstar, INT3, size)
    ) / 2e-6
    assert gradient @ move == pytest.approx(slope, abs=1e-7)
    # And each takes the same part of it.
    parts = ((gradient - plain) * np.sign(w))[block][tied]
    np.testing.assert_allclose(parts, parts[0], rtol=1e-12)


@pytest.mark.parametrize("z", [-3.0, -2.2, 0.0, 0.4, 3.0])
def test_rounding_adds_the_variance_of_a_coin(z):
  """w = s z goes up with chance z - floor(z): the variance of that coin."""
  s, h = 0.5, np.array([2.0, 2.0])
  up = z - np.floor(z)
  variance = s**2 * up * (1 - up)
  found = theory.rounding_risk(np.array([s * z, 0.0]), h, INT3, s)
  assert found == pytest.approx(2.0 * variance / 2, abs=1e-15)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("eta", [0.1, -1.0], "eta=-1.0 must be finite and >= 0"),
    ("batch", [1.0, 0.99], "batch=0.99 is below 1"),
    ("batch", np.nan, "batch=nan is below 1"),
    ("beta", 1.0, r"beta=1.0 must be in \[0, 1\)"),
    ("beta", -1e-9, "beta=-1e-09"),
    ("t", np.inf, "t=inf"),
    ("ts", [-0.5], "t=-0.5"),
    ("codes", [-1.0, 0, 2], "symmetric"),
    ("codes", [1.0, 0, -1], "must increase"),
    ("step_size", 0.0, "step_size=0.0"),
    ("schedule", theory.Schedule(np.ones((2, 2)), np.ones((2, 2))), "vectors"),
    ("stages", theory.Stages(np.ones(2), np.ones(2), np.ones(3)), "steps"),
    ("stages", theory.Stages(np.ones(1), np.ones(1), -np.ones(1)), "-1.0"),
  ],
)
def test_bad_values_are_named(name, value, message):
  with pytest.raises(ValueError, match=message):
    checks.check({name: value})


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("eta", 0.0),
    ("batch", [1.0, np.inf]),
    ("beta", [0.0, 0.999]),
    ("t", 0.0),
    ("codes", [-1.0, 0, 1]),
    ("step_size", None),
    ("somebody else's", -1.0),
  ],
)
def test_good_values_pass(name, value):
  assert checks.check({name: value}) is None


def test_bad_theta_is_named():
  with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
    theory.avg_scan(PROBLEM, theory.schedule([0.1, 0.1], 2), np.ones(3))
  with pytest.raises(ValueError, match="fraction=0"):
    theory.theta_tail(5, 0)
  with pytest.raises(ValueError, match="p=-1"):
    theory.theta_poly(5, -1)
  with pytest.raises(ValueError, match="every=0"):
    theory.risk_scan(PROBLEM, theory.schedule([0.1], 2), every=0)
