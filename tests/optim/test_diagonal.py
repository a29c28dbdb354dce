"""Diagonal preconditioners: against NumPy, reductions, and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.diagonal import preconditioned
from scipy import linalg

import optim

I, O, B, STEPS = 3, 2, 8, 5
RNG = np.random.default_rng(0)
X_TBI = RNG.normal(size=(STEPS, B, I)) * np.array([2.0, 1.0, 0.5])
Y_TBO = RNG.normal(size=(STEPS, B, O))
TURN = np.linalg.qr(RNG.normal(size=(I * O, I * O)))[0]
W_IO = RNG.normal(size=(I, O))
PARAMS = dict(w=jnp.asarray(W_IO, jnp.float32))
# Couples the outputs, so that the second side's factor is not the identity.
METRIC = np.array([[2.0, 0.7], [0.7, 0.5]])


def _model_fn(params, batch):
  return batch["x"] @ params["w"]


def _loss_fn(outputs, batch):
  r = outputs - batch["y"]
  return jnp.mean(jnp.einsum("bo,op,bp->b", r, METRIC, r)) / 2


def _batch(step):  # float32, but for `test_equals_oracle`.
  return dict(x=jnp.asarray(X_TBI[step]), y=jnp.asarray(Y_TBO[step]))


def _loss(params, batch):
  return _loss_fn(_model_fn(params, batch), batch)


_GRADS = jax.jit(jax.grad(_loss))


def _run(tx, steps=STEPS, params=PARAMS, **extra):
  """Directions of some steps, from the same parameters, and the states."""
  state, update, result = tx.init(params), jax.jit(tx.update), []
  for step in range(steps):
    grads = _GRADS(params, _batch(step))
    batch = _batch(step)
    updates, state = update(
      grads, state, params, curvature_batch=batch, **extra
    )
    result.append((np.asarray(updates["w"], np.float64).ravel(), state))
  assert update._cache_size() <= 1  # 0: JAX kept no entry.
  return result


def _matrices(estimator, grads):
  if estimator == "empirical_fisher":
    return [np.outer(g, g) for g in grads]
  return [np.kron(x.T @ x / B, METRIC) for x in X_TBI]


def _bases(kind, matrices, decay, period, lag):
  """U a step, from the averages of the matrices, `lag` steps late."""
  if kind == "identity":
    return [np.eye(I * O)] * STEPS
  if kind == "supplied":
    return [TURN] * STEPS
  average, basis, result = np.zeros((I * O, I * O)), np.eye(I * O), []
  for step, matrix in enumerate(matrices):
    if lag == 0:
      average = decay * average + (1 - decay) * matrix
    if step >= lag and (step - lag) % period == 0:
      basis = _eigenvectors(kind, average)
    if lag == 1:
      average = decay * average + (1 - decay) * matrix
    result.append(basis)
  return result


def _eigenvectors(kind, matrix):
  if kind == "eigen":
    return np.linalg.eigh(matrix)[1]
  tensor = matrix.reshape(I, O, I, O)
  left, right = np.einsum("iojo->ij", tensor), np.einsum("ioip->op", tensor)
  return np.kron(np.linalg.eigh(left)[1], np.linalg.eigh(right)[1])


@pytest.mark.parametrize(
  ("power", "kind", "estimator", "basis_estimator", "period"),
  [
    (-1.0, "identity", "ggn", None, 1),
    (-1.0, "supplied", "empirical_fisher", None, 1),
    (-0.5, "supplied", "ggn", None, 1),
    (-1.0, "eigen", "ggn", None, 2),
    (-0.5, "eigen", "empirical_fisher", "ggn", 1),
    (-0.7, "kronecker", "empirical_fisher", None, 2),
    (-1.0, "kronecker", "ggn", None, 1),
    (-0.5, "kronecker", "ggn", "empirical_fisher", 2),
  ],
)
def test_equals_oracle(power, kind, estimator, basis_estimator, period):
  residuals = X_TBI @ W_IO - Y_TBO
  grads = np.einsum("tbi,tbo,op->tip", X_TBI, residuals, METRIC) / B
  grads = grads.reshape(STEPS, I * O)
  source = basis_estimator or estimator
  lag = 1 if source == "empirical_fisher" else 0
  bases = _bases(kind, _matrices(source, grads), 0.6, period, lag)
  wanted = preconditioned(
    grads, bases, _matrices(estimator, grads),
    power=power, decay=0.8, eps=1e-3, damping=1e-2,
  )  # fmt: skip
  with jax.enable_x64(True):
    tx = optim.scale_by_diagonal_preconditioner(
      power,
      TURN if kind == "supplied" else kind,
      estimator,
      model_fn=_model_fn,
      loss_fn=_loss_fn,
      decay=0.8,
      basis_decay=0.6 if kind in ("eigen", "kronecker") else None,
      eps=1e-3,
      damping=1e-2,
      basis_estimator=basis_estimator,
      basis_update_period=period,
    )
    found = [x for x, _ in _run(tx, params=dict(w=jnp.asarray(W_IO)))]
  np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


def test_without_a_basis_it_is_adam_without_momentum():
  ours = optim.scale_by_diagonal_preconditioner(decay=0.9)
  adam = optax.scale_by_adam(b1=0.0, b2=0.9)
  adam = optax.with_extra_args_support(adam)
  for (found, _), (right, _) in zip(_run(ours), _run(adam), strict=True):
    np.testing.assert_allclose(found, right, rtol=1e-5)


def _shot(basis):
  """Loss left after one full-batch step of length 1 on a quadratic."""
  tx = optim.scale_by_diagonal_preconditioner(
    -1.0, basis, "ggn", model_fn=_model_fn, loss_fn=_loss_fn
  )
  updates, _ = _run(tx, steps=1)[0]
  w = PARAMS["w"] - updates.reshape(I, O).astype(np.float32)
  best = np.linalg.lstsq(X_TBI[0], Y_TBO[0], rcond=None)[0]
  losses = [float(_loss(dict(w=v), _batch(0))) for v in (PARAMS["w"], w, best)]
  return (losses[1] - losses[2]) / (losses[0] - losses[2])


def test_newton_in_the_eigenbasis_solves_a_quadratic_in_one_step():
  # S1; the Kronecker product here has Kronecker eigenvectors.
  assert _shot("eigen") < 1e-5
  assert _shot("kronecker") < 1e-5
  assert _shot("identity") > 1e-2


def test_drawn_labels_give_the_diagonal_in_the_basis():
  # G of the normal likelihood: loss |r|^2 / 2.
  tx = optim.scale_by_diagonal_preconditioner(
    basis=TURN, estimator="gnb", model_fn=_model_fn, likelihood="normal",
    decay=0.0,
  )  # fmt: skip

  def nu(key, weights):
    return tx.update(
      PARAMS, tx.init(PARAMS), PARAMS, curvature_batch=_batch(0), key=key,
      curvature_weights=weights,
    )[1].nu  # fmt: skip

  keys = jax.random.split(jax.random.key(0), 20_000)
  weights = np.arange(B) + 1.0
  samples = jax.jit(jax.vmap(nu, (0, None)))(keys, weights)
  x = X_TBI[0] * np.sqrt(weights / weights.sum())[:, None]
  wanted = np.diag(TURN.T @ np.kron(x.T @ x, np.eye(O)) @ TURN)
  samples = np.asarray(samples, np.float64)
  error = samples.std(axis=0) / np.sqrt(len(keys))
  gap = np.abs(samples.mean(axis=0) - wanted)
  np.testing.assert_array_less(gap, 4.5 * error)


def test_basis_of_drawn_labels_moves_only_when_due():
  tx = optim.scale_by_diagonal_preconditioner(
    basis="kronecker", estimator="gnb", model_fn=_model_fn,
    likelihood="normal", basis_update_period=3,
  )  # fmt: skip
  states = [s for _, s in _run(tx, key=jax.random.key(0))]
  bases = [jax.tree.leaves(s.bases.kronecker["3x2_01"].derived) for s in states]
  changed = [
    bool(np.any(np.asarray(a[0]) != b[0]))
    for a, b in zip(bases, bases[1:], strict=False)
  ]
  assert changed == [False, False, True, False]
  for left, right in bases:
    np.testing.assert_allclose(left[0].T @ left[0], np.eye(I), atol=1e-5)
    np.testing.assert_allclose(right[0].T @ right[0], np.eye(O), atol=1e-5)


@pytest.mark.parametrize("basis", ["identity", "eigen", "kronecker"])
def test_what_is_not_finite_is_left_out(basis):
  tx = optim.scale_by_diagonal_preconditioner(
    -1.0, basis, "ggn", model_fn=_model_fn, loss_fn=_loss_fn
  )
  update, state = jax.jit(tx.update), tx.init(PARAMS)
  grads, bad = _GRADS(PARAMS, _batch(0)), dict(_batch(0))
  bad["x"] = bad["x"].at[0, 0].set(jnp.nan)
  # Nothing known yet: no step.
  updates, state = update(grads, state, PARAMS, curvature_batch=bad)
  np.testing.assert_array_equal(updates["w"], 0)
  wanted, after = update(grads, state, PARAMS, curvature_batch=_batch(0))
  assert np.all(np.isfinite(wanted["w"]))
  again, last = update(grads, after, PARAMS, curvature_batch=bad)
  np.testing.assert_allclose(again["w"], wanted["w"], rtol=1e-4)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(last))
  broken = dict(w=grads["w"].at[0, 0].set(jnp.inf))
  updates, _ = update(broken, after, PARAMS, curvature_batch=_batch(1))
  np.testing.assert_array_equal(updates["w"], 0)


def test_model_and_power_under_inject_hyperparams():
  options = dict(
    estimator="ggn", basis="eigen", model_fn=_model_fn, loss_fn=_loss_fn,
    power=-1.0,
  )  # fmt: skip
  plain = _run(optim.scale_by_diagonal_preconditioner(**options), steps=2)
  static = ("model_fn", "loss_fn", "basis_update_period", "max_precond_dim")
  injected = optax.inject_hyperparams(
    optim.scale_by_diagonal_preconditioner, static_args=static
  )(**options)
  for (a, _), (b, _) in zip(plain, _run(injected, steps=2), strict=True):
    # A traced power is rounded otherwise than a number; two steps show more
    # of that on jax 0.12 (1.1e-4) than on 0.10.
    np.testing.assert_allclose(a, b, rtol=5e-4, atol=1e-6)


def test_bfloat16_params_with_the_model():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  tx = optim.scale_by_diagonal_preconditioner(
    -1.0, "eigen", "ggn", model_fn=_model_fn, loss_fn=_loss_fn
  )
  updates, state = jax.jit(tx.update)(
    params, tx.init(params), params, curvature_batch=_batch(0)
  )
  assert updates["w"].dtype == jnp.bfloat16
  types = {x.dtype for x in jax.tree.leaves(state)}
  assert types == {jnp.dtype("float32"), jnp.dtype("int32")}


def _rotation(seed, n=6):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
  q[:, 0] *= np.sign(np.linalg.det(q))
  return q


def test_interpolated_bases_are_the_geodesic():
  start, end = _rotation(1), _rotation(2)
  velocity = linalg.logm(start.T @ end)
  for s in (0.0, 0.3, 0.5, 1.0):
    found = optim.interpolate_bases(start, end, s)
    wanted = start @ linalg.expm(s * velocity)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_interpolated_bases_with_a_reflection_and_a_half_turn():
  start, end = np.eye(6), _rotation(2)
  end[:, 3] *= -1
  arrived = optim.interpolate_bases(start, end, 1.0)
  np.testing.assert_allclose(np.abs(arrived.T @ end), np.eye(6), atol=1e-10)
  # Principal logarithms fail at -1: any half turn of the plane is a geodesic.
  end = np.diag([-1.0, 1, -1, 1, 1, 1])
  half = optim.interpolate_bases(start, end, 0.5)
  np.testing.assert_allclose(half.T @ half, np.eye(6), atol=1e-12)
  np.testing.assert_allclose(half @ half, end, atol=1e-12)


_DIAGONAL = optim.scale_by_diagonal_preconditioner
_GGN = functools.partial(
  _DIAGONAL, estimator="ggn", model_fn=_model_fn, loss_fn=_loss_fn
)


def _update(tx, params=PARAMS, **extra):
  masked = dict(PARAMS, v=jnp.ones(2))
  return tx.update(
    PARAMS, tx.init(masked if "v" in params else PARAMS), **extra
  )


@pytest.mark.parametrize(
  ("message", "call"),
  [
    (r"power=0.5 must be in \[-1, 0\)", lambda: _DIAGONAL(0.5)),
    ("power=-2", lambda: _DIAGONAL(-2.0)),
    ("basis='svd' is not known", lambda: _DIAGONAL(basis="svd")),
    ("basis=None must be", lambda: _DIAGONAL(basis=None)),
    ("basis has shape", lambda: _DIAGONAL(basis=np.ones((2, 3)))),
    ("basis is not orthonormal", lambda: _DIAGONAL(basis=2 * np.eye(2))),
    (
      r"give an orthonormal matrix of shape \(6, 6\)",
      lambda: _DIAGONAL(basis=np.eye(2)).init(PARAMS),
    ),
    ("estimator='hessian'", lambda: _DIAGONAL(estimator="hessian")),
    ("basis_estimator='gnb' makes no basis",
     lambda: _DIAGONAL(basis_estimator="gnb")),
    ("likelihood='poisson'", lambda: _DIAGONAL(likelihood="poisson")),
    ("decay=1", lambda: _DIAGONAL(decay=1.0)),
    ("basis_decay=-0.1", lambda: _DIAGONAL(basis_decay=-0.1)),
    ("eps=-1", lambda: _DIAGONAL(eps=-1.0)),
    ("damping=-1", lambda: _DIAGONAL(damping=-1.0)),
    ("basis_update_period=0", lambda: _DIAGONAL(basis_update_period=0)),
    ("model_fn=None, but estimator 'gnb'", lambda: _DIAGONAL(estimator="gnb")),
    (
      "loss_fn=None, but estimator 'ggn'",
      lambda: _DIAGONAL(
        basis="eigen", basis_estimator="ggn", model_fn=_model_fn
      ),
    ),
    ("at most 5000",
     lambda: _DIAGONAL(basis="eigen").init(jnp.ones(5001))),
    ("has type int", lambda: _DIAGONAL().init(jnp.ones(2, int))),
    ("params and curvature_batch missing", lambda: _update(_GGN())),
    (
      "key missing",
      lambda: _update(
        _DIAGONAL(estimator="gnb", model_fn=_model_fn),
        params=PARAMS, curvature_batch=_batch(0),
      ),
    ),
    (
      "params are masked",
      lambda: optax.masked(_GGN(), dict(w=True, v=False)).update(
        dict(PARAMS, v=jnp.ones(2)),
        optax.masked(_GGN(), dict(w=True, v=False)).init(
          dict(PARAMS, v=jnp.ones(2))
        ),
        dict(PARAMS, v=jnp.ones(2)),
        curvature_batch=_batch(0),
      ),
    ),
    (
      "end_PQ is not orthonormal",
      lambda: optim.interpolate_bases(np.eye(2), np.ones((2, 2)), 0.5),
    ),
    (
      "two bases of one space",
      lambda: optim.interpolate_bases(np.eye(2), np.eye(3), 0.5),
    ),
  ],
)  # fmt: skip
def test_bad_input(message, call):
  with pytest.raises(ValueError, match=message):
    call()
