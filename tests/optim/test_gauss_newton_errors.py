"""What Gauss-Newton says of arguments and batches that it cannot use."""

import jax.numpy as jnp
import optax
import pytest

import optim

LOSS = optim.softmax_cross_entropy(lambda batch: (batch["y"], None))
N, M, ROWS = 4, 2, 8  # Batches of the solve and of the search, their rows.


def _model(params, batch):
  return jnp.tanh(batch["w"] @ params["a"])


def _params():
  return dict(a=jnp.ones((4, 3)))


def _batches(count):
  return dict(
    w=jnp.ones((count, ROWS, 4)), y=jnp.zeros((count, ROWS), jnp.int32)
  )


def _data(n=N, m=M):
  return dict(batches=_batches(n), ls_batches=_batches(m))


def _build(**changes):
  options = dict(inner_steps=N, line_search=optim.LineSearch(num_batches=M))
  return optim.gauss_newton(
    _model, LOSS, optax.adamw(1.0), **(options | changes)
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(mode="newton"), "mode='newton' is not known"),
    (dict(inner_steps=0), "inner_steps=0 must be >= 1"),
    (dict(inner_steps=2.0), "inner_steps=2.0 must be a Python int"),
    (dict(damping=-0.1), "damping=-0.1 must be >= 0"),
    (dict(warm_start=1.5), r"warm_start=1.5 must be in \[0, 1\]"),
    (dict(clip_norm=-1.0), "clip_norm=-1.0 must be >= 0"),
    (dict(scope="layers"), "scope='layers' is not known"),
    (dict(line_search="armijo"), "line_search='armijo' is not known"),
    (dict(line_search=optim.LineSearch(ratio=1.0)), "ratio=1.0 must be in"),
    (dict(line_search=optim.LineSearch(num=0)), "num=0 must be >= 1"),
    (dict(solver="newton"), "solver='newton' is not known"),
    (dict(solver=optim.CG(), mode="prox_linear"), "CG with mode='prox_linear'"),
    (
      dict(solver=optim.CG(curvature_batches=1)),
      "curvature_batches=1 of 4 with damping=0.*diverges",
    ),
    (dict(group_axis="data"), "group_axis='data' with scope='full'"),
    (
      dict(damping=optim.LevenbergMarquardt(), mode="nonlinear"),
      "LevenbergMarquardt with mode='nonlinear'",
    ),
    (
      dict(damping=optim.LevenbergMarquardt(), line_search=None),
      "LevenbergMarquardt without a line search",
    ),
    (dict(damping=optim.LevenbergMarquardt(up=0.5)), "up > 1 > down"),
  ],
)
def test_bad_arguments_are_explained(changes, message):
  with pytest.raises(ValueError, match=message):
    _build(**changes).init(_params())


def test_a_bad_inner_optimizer_is_explained():
  with pytest.raises(ValueError, match="inner_optimizer=0.1 must be an optax"):
    optim.gauss_newton(_model, LOSS, 0.1, inner_steps=1)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (dict(), "takes its data itself: pass batches, 4"),
    (_data(n=3), r"batches\['w'\] has shape \(3, 8, 4\).*the 4 batches"),
    (dict(batches=_batches(N)), "pass ls_batches, 2 batches"),
    (_data(m=1), r"ls_batches\['w'\].*the 2 batches that line_search"),
    (dict(batches={}), "batches has no arrays"),
    (dict(batches=dict(x=1.0)), r"batches\['x'\] has shape \(\)"),
  ],
)
def test_bad_batches_are_explained(data, message):
  tx, params = _build(), _params()
  with pytest.raises(ValueError, match=message):
    tx.update(None, tx.init(params), params, **data)


def test_rows_must_divide_into_splits():
  tx, params = _build(splits=3), _params()
  with pytest.raises(ValueError, match=r"splits=3 does not divide the 8 rows"):
    tx.update(None, tx.init(params), params, **_data())


def test_params_are_needed():
  tx = _build()
  with pytest.raises(ValueError, match="so pass them"):
    tx.update(None, tx.init(_params()), **_data())
