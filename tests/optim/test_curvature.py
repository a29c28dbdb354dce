"""Curvature products against dense matrices in float64."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optim

MODES = ("quadratic", "prox_linear", "nonlinear")
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.0, 1.0])


@pytest.fixture(autouse=True, scope="module")
def _float64():
  with jax.enable_x64(True):
    yield


def _normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _params():
  shapes = dict(a=(4, 5), b=(5, 6), c=(6, 3), bias=(3,))
  return {k: 0.7 * _normal(i, *s) for i, (k, s) in enumerate(shapes.items())}


def _mlp(params, batch):
  h = jnp.tanh(jnp.tanh(batch["x"] @ params["a"]) @ params["b"])
  return h @ params["c"] + params["bias"]


def _batch(weights=None):
  labels = np.random.default_rng(8).integers(0, 3, 7)
  batch = dict(x=_normal(7, 7, 4), targets=jnp.asarray(labels))
  return batch if weights is None else batch | dict(weights=weights)


def _regression(batch):
  return batch | dict(targets=_normal(6, 7, 3))


def _plain_cross_entropy(z, batch):
  """Written without `optim`, from the definition."""
  picked = jnp.take_along_axis(z, batch["targets"][:, None], 1)[:, 0]
  losses = jnp.log(jnp.sum(jnp.exp(z), 1)) - picked
  w = batch.get("weights", jnp.ones(7))
  return jnp.sum(w * losses) / jnp.sum(w)


def _plain_squares(z, batch):
  w = batch.get("weights", jnp.ones(7))
  return jnp.sum(w * jnp.sum((z - batch["targets"]) ** 2, 1)) / 2 / jnp.sum(w)


def _plain_z_loss(z, batch):
  w = batch.get("weights", jnp.ones(7))
  s = jnp.log(jnp.sum(jnp.exp(z), 1))
  return _plain_cross_entropy(z, batch) + 0.3 * jnp.sum(w * s**2) / jnp.sum(w)


LOSSES = {
  "cross_entropy": (optim.softmax_cross_entropy(), _plain_cross_entropy),
  "z_loss": (optim.softmax_cross_entropy(z_loss=0.3), _plain_z_loss),
  "squares": (optim.squared_error(), _plain_squares),
  "autodiff": (
    optim.mean_loss(
      lambda z, y: (
        jax.nn.logsumexp(z, -1)
        - jnp.take_along_axis(z, y[..., None], -1)[..., 0]
      )
    ),
    _plain_cross_entropy,
  ),
  "function": (_plain_cross_entropy, _plain_cross_entropy),
}


@pytest.fixture(params=sorted(LOSSES))
def case(request):
  """(loss under test, its plain definition, batch)."""
  batch = _batch(jnp.asarray(WEIGHTS))
  if request.param == "squares":
    batch = _regression(batch)
  return *LOSSES[request.param], batch


def _dense(plain, batch, params=None):
  """(loss, g, G, J) at the parameters, all dense, from the plain loss."""
  params = _params() if params is None else params
  flat, unflatten = jax.flatten_util.ravel_pytree(params)

  def outputs(x):
    return _mlp(unflatten(x), batch).ravel()

  def loss(z):
    return plain(z.reshape(7, 3), batch)

  z, jacobian = outputs(flat), jax.jacobian(outputs)(flat)
  hessian = jax.hessian(loss)(z)
  gradient = jacobian.T @ jax.grad(loss)(z)
  return loss(z), gradient, jacobian.T @ hessian @ jacobian, jacobian


def _flat(tree):
  return jax.flatten_util.ravel_pytree(tree)[0]


def _close(actual, wanted, atol=1e-12):
  np.testing.assert_allclose(_flat(actual), _flat(wanted), atol=atol, rtol=0)


def _direction(seed=20, scale=0.3):
  return {
    k: scale * _normal(seed + i, *p.shape)
    for i, (k, p) in enumerate(_params().items())
  }


def test_product_is_the_dense_one(case):
  loss, plain, batch = case
  v = _direction()
  actual = jax.jit(
    lambda v: optim.ggn_vector_product(_mlp, loss, _params(), batch, v)
  )(v)
  _, _, matrix, _ = _dense(plain, batch)
  _close(actual, matrix @ _flat(v))
  damped = optim.ggn_vector_product(
    _mlp, loss, _params(), batch, v, damping=0.5
  )
  _close(damped, matrix @ _flat(v) + 0.5 * _flat(v))


def test_hessian_is_gauss_newton_and_the_curvature_of_the_model(case):
  loss, plain, batch = case
  flat, unflatten = jax.flatten_util.ravel_pytree(_params())
  hessian = jax.hessian(lambda x: plain(_mlp(unflatten(x), batch), batch))(flat)
  v = _direction()
  actual = optim.hvp(_mlp, loss, _params(), batch, v, damping=0.1)
  _close(actual, hessian @ _flat(v) + 0.1 * _flat(v), 1e-11)
  z = _mlp(_params(), batch)
  slope = jax.grad(lambda z: plain(z, batch))(z)

  def linear(x):  # The outputs along the slope: its Hessian is the rest.
    return jnp.vdot(slope, _mlp(unflatten(x), batch))

  _, _, matrix, _ = _dense(plain, batch)
  _close(hessian, matrix + jax.hessian(linear)(flat), 1e-10)


def test_matrix_is_positive_with_the_rank_of_the_outputs():
  # Softmax outputs have V - 1 degrees of freedom; one weight is zero.
  _, _, matrix, _ = _dense(_plain_cross_entropy, _batch(jnp.asarray(WEIGHTS)))
  eigenvalues = np.linalg.eigvalsh(matrix)
  assert eigenvalues[0] > -1e-12
  assert np.sum(eigenvalues > 1e-10) == 6 * 2


def test_quadratic_model_is_the_taylor_one(case):
  loss, plain, batch = case
  d = _direction()
  value, grad = jax.jit(
    lambda d: optim.local_value_and_grad(_mlp, loss, _params(), d, batch)
  )(d)
  level, gradient, matrix, _ = _dense(plain, batch)
  x = _flat(d)
  _close(grad, gradient + matrix @ x)
  _close(value, level + gradient @ x + x @ matrix @ x / 2)


def test_prox_linear_model_is_the_loss_of_linear_outputs(case):
  loss, plain, batch = case
  d = _direction()
  value, grad = optim.local_value_and_grad(
    _mlp, loss, _params(), d, batch, mode="prox_linear"
  )
  _, _, _, jacobian = _dense(plain, batch)
  z = _mlp(_params(), batch)

  def model(x):
    return plain(z + (jacobian @ x).reshape(z.shape), batch)

  wanted = jax.value_and_grad(model)(_flat(d))
  _close((value, grad), wanted)


def test_nonlinear_is_the_loss_itself(case):
  loss, plain, batch = case
  d = _direction()
  actual = optim.local_value_and_grad(
    _mlp, loss, _params(), d, batch, mode="nonlinear"
  )
  moved = jax.tree.map(jnp.add, _params(), d)
  wanted = jax.value_and_grad(lambda p: plain(_mlp(p, batch), batch))(moved)
  _close(actual, wanted)


def test_squared_loss_makes_both_models_equal():
  d, batch = _direction(), _regression(_batch())
  a, b = (
    optim.local_value_and_grad(
      _mlp, optim.squared_error(), _params(), d, batch, mode=mode
    )
    for mode in ("quadratic", "prox_linear")
  )
  _close(a, b)


def test_cross_entropy_models_part_with_the_square_of_the_step():
  def gap(scale):
    a, b = (
      optim.local_value_and_grad(
        _mlp, optim.softmax_cross_entropy(), _params(),
        _direction(scale=scale), _batch(), mode=mode,
      )[1]
      for mode in ("quadratic", "prox_linear")
    )  # fmt: skip
    return float(np.linalg.norm(_flat(a) - _flat(b)))

  assert gap(0.01) / gap(0.005) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_damping_pulls_towards_its_centre(mode):
  d, at = _direction(), _direction(40)
  loss, batch = optim.softmax_cross_entropy(), _batch()

  def model(**damping):
    return optim.local_value_and_grad(
      _mlp, loss, _params(), d, batch, mode=mode, **damping
    )

  (value, grad), (value0, grad0) = model(damping=0.2), model()
  _close(_flat(grad) - _flat(grad0), 0.2 * _flat(d), 1e-14)
  _close(value - value0, 0.1 * jnp.vdot(_flat(d), _flat(d)), 1e-14)
  centred = model(damping=jnp.asarray(0.2), damping_at=at)[1]
  _close(_flat(centred) - _flat(grad0), 0.2 * (_flat(d) - _flat(at)), 1e-14)


def test_linearized_is_the_joint_form(case):
  loss, plain, batch = case
  d = _direction()
  at = optim.linearize_at(_mlp, loss, _params(), batch)
  level, gradient, matrix, jacobian = _dense(plain, batch)
  _close((at.value, at.grad), (level, gradient))
  _close(at.ggn(d), matrix @ _flat(d))
  _close(at.outputs, _mlp(_params(), batch))
  _close(at.jvp(d), jacobian @ _flat(d))
  _close(at.vjp(at.outputs), jacobian.T @ at.outputs.ravel())


def test_trees_of_outputs_need_a_plain_loss():
  def model(params, batch):
    return dict(z=_mlp(params, batch), norm=[jnp.sum(params["a"] ** 2)])

  def loss(outputs, batch):
    return _plain_cross_entropy(outputs["z"], batch) + outputs["norm"][0] ** 2

  flat, unflatten = jax.flatten_util.ravel_pytree(_params())
  a, batch = _params()["a"], _batch()
  _, _, matrix, _ = _dense(_plain_cross_entropy, batch)
  v = _direction()
  wanted = matrix @ _flat(v)
  norm = unflatten(jnp.zeros_like(flat)) | dict(a=2 * a)
  wanted = wanted + 2 * _flat(norm) * jnp.vdot(_flat(norm), _flat(v))
  _close(optim.ggn_vector_product(model, loss, _params(), batch, v), wanted)


def test_batch_without_weight_has_no_gradient():
  batch = _batch(jnp.zeros(7))
  value, grad = optim.local_value_and_grad(
    _mlp, optim.softmax_cross_entropy(), _params(), _direction(), batch
  )
  assert float(value) == 0
  assert not np.any(_flat(grad))


def test_absent_classes_change_nothing():
  batch = _batch()

  def wider(params, batch):
    z = _mlp(params, batch)
    return jnp.concatenate([z, jnp.full((7, 2), -jnp.inf)], axis=1)

  loss = optim.softmax_cross_entropy(z_loss=0.1)
  for mode in MODES:
    a, b = (
      optim.local_value_and_grad(
        model, loss, _params(), _direction(), batch, mode=mode
      )
      for model in (_mlp, wider)
    )
    _close(a, b)


@jax.custom_vjp
def _fused(x):
  return jnp.sin(x)


_fused.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (jnp.cos(x) * ct,))


@pytest.mark.parametrize("call", ["ggn", "inner", "linearize"])
def test_an_operation_without_forward_mode_says_the_way_out(call):
  def model(params, batch):
    return _fused(_mlp(params, batch))

  args = model, _plain_cross_entropy, _params()
  d, batch = _direction(), _batch()
  calls = dict(
    ggn=lambda: optim.ggn_vector_product(*args, batch, d),
    inner=lambda: optim.local_value_and_grad(*args, d, batch),
    linearize=lambda: optim.linearize_at(*args, batch).ggn(d),
  )
  with pytest.raises(ValueError, match="custom_vjp.*custom_jvp"):
    calls[call]()


def test_nonlinear_mode_needs_no_forward_mode():
  value, _ = optim.local_value_and_grad(
    lambda p, b: _fused(_mlp(p, b)), _plain_cross_entropy, _params(),
    _direction(), _batch(), mode="nonlinear",
  )  # fmt: skip
  assert np.isfinite(value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(mode="newton"), "mode='newton'.*quadratic"),
    (dict(damping=-1.0), "damping=-1.0 must be >= 0"),
    (dict(delta={}), "delta must be a tree like params"),
    (dict(delta=_params() | dict(a=jnp.ones(3))), r"delta\['a'\] has shape"),
    (dict(loss_fn=lambda z, b: z), "loss_fn returned an array of shape"),
    (dict(batch=dict(x=jnp.ones((7, 4)))), r"batch\['targets'\]"),
    (dict(batch=_batch(jnp.ones(3))), r"weights have shape \(3,\)"),
  ],
)
def test_mistakes_are_explained(change, message):
  arguments = dict(
    model_fn=_mlp, loss_fn=optim.softmax_cross_entropy(), params=_params(),
    delta=_direction(), batch=_batch(),
  )  # fmt: skip
  with pytest.raises(ValueError, match=message):
    optim.local_value_and_grad(**(arguments | change))


def test_integers_are_no_parameters():
  params = dict(w=jnp.ones(3, jnp.int32))
  with pytest.raises(ValueError, match=r"params\['w'\] is int32"):
    optim.ggn_vector_product(None, None, params, None, params)
