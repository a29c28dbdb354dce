"""Curvature products against dense matrices in float64."""

import pathlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optim

MODES = ("quadratic", "prox_linear", "nonlinear")
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "kfac_products.npz"
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


class Case:
  """A loss under test, a batch, and everything dense from the definition."""

  def __init__(self, name):
    self.loss, self.plain = LOSSES[name]
    batch = _batch(jnp.asarray(WEIGHTS))
    self.batch = _regression(batch) if name == "squares" else batch
    self.z = _mlp(_params(), self.batch)
    self.dense = _dense(self.plain, self.batch)


@pytest.fixture(scope="module", params=sorted(LOSSES))
def case(request):
  return Case(request.param)


def _dense(plain, batch):
  """(loss, gradient, G, J, Hessian of the loss in the parameters)."""
  flat, unflatten = jax.flatten_util.ravel_pytree(_params())

  def outputs(x):
    return _mlp(unflatten(x), batch).ravel()

  def loss(z):
    return plain(z.reshape(7, 3), batch)

  @jax.jit
  def compute(flat):
    z, jacobian = outputs(flat), jax.jacobian(outputs)(flat)
    gradient = jacobian.T @ jax.grad(loss)(z)
    matrix = jacobian.T @ jax.hessian(loss)(z) @ jacobian
    hessian = jax.hessian(lambda x: loss(outputs(x)))(flat)
    return loss(z), gradient, matrix, jacobian, hessian

  return compute(flat)


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
  v = _direction()
  product = jax.jit(
    lambda v, damping: optim.ggn_vector_product(
      _mlp, case.loss, _params(), case.batch, v, damping=damping
    )
  )
  wanted = case.dense[2] @ _flat(v)
  _close(product(v, 0.0), wanted)
  _close(product(v, 0.5), wanted + 0.5 * _flat(v))


def test_hessian_is_gauss_newton_and_the_curvature_of_the_model(case):
  _, _, matrix, _, hessian = case.dense
  v = _direction()
  actual = jax.jit(
    lambda v: optim.hvp(_mlp, case.loss, _params(), case.batch, v, damping=0.1)
  )(v)
  _close(actual, hessian @ _flat(v) + 0.1 * _flat(v), 1e-11)
  flat, unflatten = jax.flatten_util.ravel_pytree(_params())
  slope = jax.grad(lambda z: case.plain(z, case.batch))(case.z)

  def linear(x):  # The outputs along the slope: its Hessian is the rest.
    return jnp.vdot(slope, _mlp(unflatten(x), case.batch))

  _close(hessian, matrix + jax.jit(jax.hessian(linear))(flat), 1e-10)


def test_matrix_is_positive_with_the_rank_of_the_outputs():
  # Softmax outputs have V - 1 degrees of freedom; one weight is zero.
  matrix = _dense(_plain_cross_entropy, _batch(jnp.asarray(WEIGHTS)))[2]
  eigenvalues = np.linalg.eigvalsh(matrix)
  assert eigenvalues[0] > -1e-12
  assert np.sum(eigenvalues > 1e-10) == 6 * 2


def test_local_models(case):
  d = _direction()
  actual = jax.jit(
    lambda d: {
      mode: optim.local_value_and_grad(
        _mlp, case.loss, _params(), d, case.batch, mode=mode
      )
      for mode in MODES
    }
  )(d)
  level, gradient, matrix, jacobian, _ = case.dense
  x = _flat(d)
  taylor = level + gradient @ x + x @ matrix @ x / 2
  _close(actual["quadratic"], (taylor, gradient + matrix @ x))

  def linear(x):
    return case.plain(case.z + (jacobian @ x).reshape(7, 3), case.batch)

  def itself(p):
    return case.plain(_mlp(p, case.batch), case.batch)

  _close(actual["prox_linear"], jax.jit(jax.value_and_grad(linear))(x))
  moved = jax.tree.map(jnp.add, _params(), d)
  _close(actual["nonlinear"], jax.jit(jax.value_and_grad(itself))(moved))


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


def test_damping_pulls_towards_its_centre():
  d, at = _direction(), _direction(40)
  loss, batch = optim.softmax_cross_entropy(), _batch()

  @jax.jit
  def model(damping, at):
    return [
      optim.local_value_and_grad(
        _mlp, loss, _params(), d, batch, mode=mode, damping=damping,
        damping_at=at,
      )
      for mode in MODES
    ]  # fmt: skip

  zero = jax.tree.map(jnp.zeros_like, at)
  for damped, centred, plain in zip(
    model(0.2, None), model(0.2, at), model(0.0, zero), strict=True
  ):
    slope = _flat(damped[1]) - _flat(plain[1])
    _close(slope, 0.2 * _flat(d), 1e-14)
    _close(damped[0] - plain[0], 0.1 * jnp.vdot(_flat(d), _flat(d)), 1e-14)
    slope = _flat(centred[1]) - _flat(plain[1])
    _close(slope, 0.2 * (_flat(d) - _flat(at)), 1e-14)


def test_linearized_is_the_joint_form(case):
  d = _direction()

  @jax.jit
  def compute(d):
    at = optim.linearize_at(_mlp, case.loss, _params(), case.batch)
    return at[:3], at.ggn(d), at.jvp(d), at.vjp(at.outputs)

  (outputs, value, grad), ggn, jvp, vjp = compute(d)
  level, gradient, matrix, jacobian, _ = case.dense
  _close((value, grad), (level, gradient))
  _close(ggn, matrix @ _flat(d))
  _close(outputs, case.z)
  _close(jvp, jacobian @ _flat(d))
  _close(vjp, jacobian.T @ outputs.ravel())


def test_trees_of_outputs_need_a_plain_loss():
  def model(params, batch):
    return dict(z=_mlp(params, batch), norm=[jnp.sum(params["a"] ** 2)])

  def loss(outputs, batch):
    return _plain_cross_entropy(outputs["z"], batch) + outputs["norm"][0] ** 2

  flat, unflatten = jax.flatten_util.ravel_pytree(_params())
  a, batch = _params()["a"], _batch()
  matrix = _dense(_plain_cross_entropy, batch)[2]
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


@pytest.mark.parametrize("name", ["cross_entropy", "squares"])
def test_products_are_those_of_kfac_jax(name):
  """Numbers by another library, see `tests/golden/make_kfac_products.py`."""
  found = np.load(GOLDEN)
  params = {k: jnp.asarray(found[f"p_{k}"]) for k in _params()}
  v = {k: jnp.asarray(found[f"v_{k}"]) for k in params}
  targets, loss_fn = dict(
    cross_entropy=(found["labels"], optim.softmax_cross_entropy()),
    squares=(found["numbers"], optim.squared_error()),
  )[name]
  batch = dict(x=jnp.asarray(found["x"]), targets=jnp.asarray(targets))
  products = dict(ggn=optim.ggn_vector_product, hessian=optim.hvp)
  for kind, product in products.items():
    actual = jax.jit(
      lambda product=product: product(_mlp, loss_fn, params, batch, v)
    )()
    for k in params:
      wanted = found[f"{name}_{kind}_{k}"]
      np.testing.assert_allclose(actual[k], wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(mode="newton"), "mode='newton'.*quadratic"),
    (dict(damping=-1.0), "damping=-1.0 must be >= 0"),
    (dict(group_axis="data"), "group_axis=.data. shares groups out"),
    (dict(scope="layers"), "scope=.layers. is not known"),
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
