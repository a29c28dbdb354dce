"""Which slot acts where, modes of differentiation, keys, bias and rotation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optim
from optim.rounding import draws
from optim.rounding.product import SIGNS, rotated

SLOTS = ("x_y", "w_y", "g_dx", "w_dx", "x_dw", "g_dw")
COARSE = optim.Slot(optim.E2M1, 16)
ALL = optim.PRODUCT_RECIPES["mxfp8_e4m3"]
# Equations of a decoder, and a square layer: operands of equal shape.
EQUATIONS = (
  ("bld,df->blf", (2, 32, 48), (48, 64)),
  ("bld,dhk->bhlk", (2, 32, 48), (48, 2, 32)),
  ("bhlk,bhmk->bhlm", (2, 2, 32, 16), (2, 2, 32, 16)),
  ("bhlm,bmhk->blhk", (2, 2, 32, 32), (2, 32, 2, 16)),
  ("blhk,hkd->bld", (2, 32, 2, 32), (2, 32, 48)),
  ("ij,jk->ik", (32, 32), (32, 32)),
)


@pytest.fixture(scope="module", autouse=True)
def _many_shapes():
  """JAX keeps 8,192 calls of compiled functions; leave room for others."""
  yield
  jax.clear_caches()


def _normal(seed, shape):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(x, jnp.float32)


def _pull(equation, x, w, slots, key=None, row_keys=None):
  """(Y, dX, dW) for a fixed G."""

  def product(x, w):
    return optim.quantized_einsum(equation, x, w, slots, key, row_keys)

  y, pull = jax.vjp(product, x, w)
  return y, *pull(_normal(9, y.shape))


@pytest.mark.parametrize(("equation", "xs", "ws"), EQUATIONS)
def test_each_slot_changes_its_own_product_only(equation, xs, ws):
  x, w = _normal(0, xs), _normal(1, ws)
  run = jax.jit(_pull, static_argnums=(0, 3))
  plain = run(equation, x, w, optim.Slots())
  for slot in SLOTS:
    found = run(equation, x, w, optim.Slots(**{slot: COARSE}))
    for name, one, other in zip(("y", "dx", "dw"), found, plain, strict=True):
      changed = bool(np.any(one != other))
      assert changed == (slot.split("_")[1] == name), (slot, name)


@pytest.mark.parametrize(("equation", "xs", "ws"), EQUATIONS)
def test_the_products_are_those_of_rounded_operands(equation, xs, ws):
  """By hand: operands rounded along the axes that an einsum sums."""
  x, w = _normal(0, xs), _normal(1, ws)
  one, two, out = equation.replace("->", ",").split(",")
  y, dx, dw = _pull(equation, x, w, ALL)
  g = _normal(9, y.shape)

  def rounded(value, names, other, result):
    summed = [c for c in names if c in other and c not in result]
    quantizer = optim.Quantizer(
      optim.E4M3, names.index(summed[-1]), 32, "pow2_ceil"
    )
    return optim.round_nearest(value, quantizer)

  wanted = {}
  for name, (a, u), (b, v), c in (
    ("y", (one, x), (two, w), out),
    ("dx", (out, g), (two, w), one),
    ("dw", (one, x), (out, g), two),
  ):
    summed = [c_ for c_ in a if c_ in b and c_ not in c]
    # The other operand is cut along the same axis.
    last = summed[-1]
    left = rounded(u, a, b, c)
    quantizer = optim.Quantizer(optim.E4M3, b.index(last), 32, "pow2_ceil")
    right = optim.round_nearest(v, quantizer)
    wanted[name] = jnp.einsum(f"{a},{b}->{c}", left, right)
  for name, found in (("y", y), ("dx", dx), ("dw", dw)):
    np.testing.assert_allclose(found, wanted[name], rtol=1e-5, atol=1e-5)


def test_no_slot_is_the_plain_product():
  x, w = _normal(0, (4, 32)), _normal(1, (32, 16))

  def text(slots):
    def loss(x, w):
      return jnp.sum(optim.quantized_einsum("ij,jk->ik", x, w, slots) ** 2)

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()

  def loss(x, w):
    return jnp.sum(jnp.einsum("ij,jk->ik", x, w) ** 2)

  plain = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()
  assert text(optim.Slots()) == plain
  assert text(ALL) != plain


# --- Modes of differentiation.


@pytest.mark.parametrize("recipe", ["forward_only", "weights_only"])
def test_forward_mode_and_gauss_newton(recipe):
  """The tangent is that of the backward operands; J' is its transpose."""
  slots = optim.PRODUCT_RECIPES[recipe]
  x, w = _normal(0, (4, 32)), _normal(1, (32, 16))
  v = _normal(2, w.shape)

  def model(w):
    return optim.quantized_einsum("ij,jk->ik", x, w, slots)

  y, tangent = jax.jvp(model, (w,), (v,))
  np.testing.assert_allclose(tangent, x @ v, rtol=1e-5, atol=1e-5)
  _, pull = jax.vjp(model, w)
  np.testing.assert_allclose(pull(y)[0], x.T @ y, rtol=1e-5, atol=1e-5)
  product = optim.ggn_vector_product(
    lambda w, batch: model(w), lambda y, batch: 0.5 * jnp.sum(y**2), w, None, v
  )
  np.testing.assert_allclose(product, x.T @ (x @ v), rtol=1e-4, atol=1e-4)


def test_rounded_gradients_refuse_forward_mode():
  x, w = _normal(0, (4, 32)), _normal(1, (32, 16))

  def model(w):
    return optim.quantized_einsum("ij,jk->ik", x, w, ALL)

  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(model, (w,), (w,))


def test_gradient_of_the_rounded_layer():
  """backward_from="rounded": X_dw and W_dx are the forward operands."""
  slots = dataclasses.replace(
    optim.Slots(x_y=COARSE, w_y=COARSE), backward_from="rounded"
  )
  x, w = _normal(0, (16, 32)), _normal(1, (32, 16))
  y, dx, dw = _pull("ij,jk->ik", x, w, slots)
  g = _normal(9, y.shape)
  coarse = [
    optim.round_nearest(v, COARSE.quantizer(axis))
    for v, axis in ((x, 1), (w, 0))
  ]
  np.testing.assert_allclose(dx, g @ coarse[1].T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dw, coarse[0].T @ g, rtol=1e-5, atol=1e-5)


def test_vmap_scan_and_remat_keep_the_bits():
  x, w = _normal(0, (3, 16, 32)), _normal(1, (3, 32, 32))
  key = jax.random.key(3)
  slots = optim.PRODUCT_RECIPES["mxfp4_random"]

  def layer(x, w, i):
    own = jax.random.fold_in(key, i)
    return jnp.tanh(optim.quantized_einsum("ij,jk->ik", x, w, slots, own))

  def unrolled(w):
    h = x[0]
    for i in range(3):
      h = layer(h, w[i], i)
    return jnp.sum(h**2)

  def scanned(w, layer=layer):
    def body(h, inputs):
      return layer(h, *inputs), None

    h, _ = jax.lax.scan(body, x[0], (w, jnp.arange(3)))
    return jnp.sum(h**2)

  wanted = jax.jit(jax.grad(unrolled))(w)
  again = jax.jit(jax.grad(lambda w: scanned(w, jax.checkpoint(layer))))(w)
  np.testing.assert_array_equal(jax.jit(jax.grad(scanned))(w), again)
  np.testing.assert_allclose(again, wanted, rtol=1e-5, atol=1e-6)
  mapped = jax.vmap(layer)(x, w, jnp.arange(3))
  for i in range(3):
    np.testing.assert_array_equal(mapped[i], layer(x[i], w[i], i))


def test_it_trains_under_optax_with_bfloat16():
  key, data = jax.random.key(0), _normal(0, (64, 32))
  target = data @ _normal(1, (32, 8))
  slots = optim.PRODUCT_RECIPES["nvfp4"]
  w = jnp.zeros((32, 8), jnp.bfloat16)
  tx = optax.adam(0.05)

  def loss(w, key):
    x = data.astype(jnp.bfloat16)
    y = optim.quantized_einsum("ij,jk->ik", x, w, slots, key)
    assert y.dtype == jnp.bfloat16
    return jnp.mean((y.astype(jnp.float32) - target) ** 2)

  @jax.jit
  def step(w, state, key):
    value, grad = jax.value_and_grad(loss)(w, key)
    updates, state = tx.update(grad, state, w)
    return optax.apply_updates(w, updates), state, value

  state, losses = tx.init(w), []
  for i in range(60):
    w, state, value = step(w, state, jax.random.fold_in(key, i))
    losses.append(float(value))
  assert losses[-1] < 0.2 * losses[0]


# --- Random rounding.


def test_rows_draw_by_their_own_key_only():
  x, w = _normal(0, (4, 32, 16)), _normal(1, (16, 32))
  slots = optim.PRODUCT_RECIPES["mxfp4_random"]
  keys = jax.random.split(jax.random.key(5), 4)
  whole = _pull("bld,df->blf", x, w, slots, row_keys=keys)[1]

  def one(i):
    def product(row):
      return optim.quantized_einsum(
        "bld,df->blf", row, w, slots, row_keys=keys[i : i + 1]
      )

    y, pull = jax.vjp(product, x[i : i + 1])
    return pull(_normal(9, (4, 32, 32))[i : i + 1])[0]

  for i in range(4):
    np.testing.assert_allclose(whole[i], one(i)[0], rtol=1e-6, atol=1e-6)


def test_bits_are_uniform_and_independent():
  seed = draws.seeds(jax.random.key(7))
  word = np.asarray(draws.words(seed, (512, 512), 1))
  n = word.size
  for bit in range(32):  # 5 standard errors of a fair coin.
    assert abs(np.mean(word >> bit & 1) - 0.5) < 5 * 0.5 / n**0.5
  unit = word / 2.0**32 - 0.5
  assert abs(unit.mean()) < 5 / (12 * n) ** 0.5
  assert abs(unit.var() * 12 - 1) < 5 * (0.8 / n) ** 0.5
  others = [
    unit[1:] * unit[:-1], unit[:, 1:] * unit[:, :-1],
    unit * (np.asarray(draws.words(seed, (512, 512), 2)) / 2.0**32 - 0.5),
    unit * ((word << 16 & 0xFFFFFFFF) / 2.0**32 - 0.5),
  ]  # fmt: skip
  for i in range(8):  # Neighbouring keys, the usual ones of layers and steps.
    near = draws.seeds(jax.random.fold_in(jax.random.key(7), i))
    near = np.asarray(draws.words(near, (512, 512), 1)) / 2.0**32 - 0.5
    others.append(unit * near)
  for product in others:
    assert abs(product.mean()) < 5 / 12 / product.size**0.5


def _errors(slots, count, seed=0):
  """Relative errors of the mean of dX and dW over so many draws."""
  x, w = _normal(seed, (64, 64)), _normal(seed + 1, (64, 64))

  def one(key):
    return _pull("ij,jk->ik", x, w, slots, key)[1:]

  keys = jax.random.split(jax.random.key(seed), count)
  means = jax.jit(
    lambda keys: jax.tree.map(
      lambda total: total / count,
      jax.lax.scan(
        lambda sums, key: (jax.tree.map(jnp.add, sums, one(key)), None),
        (jnp.zeros_like(x), jnp.zeros_like(w)),
        keys,
      )[0],
    )
  )(keys)
  exact = _pull("ij,jk->ik", x, w, optim.Slots())[1:]
  norm = jnp.linalg.norm
  return [
    float(norm(m - e) / norm(e)) for m, e in zip(means, exact, strict=True)
  ]


@pytest.mark.parametrize("scale", ["pow2_ceil", "nvfp4_up"])
def test_the_bias_of_random_gradients_falls_as_the_root_of_draws(scale):
  slot = optim.Slot(optim.E2M1, 16, scale, random=True)
  slots = optim.Slots(g_dx=slot, g_dw=slot)
  few, many = (_errors(slots, count) for count in (16, 1024))
  for one, other in zip(few, many, strict=True):
    assert one / other == pytest.approx(8, rel=0.2)


def test_scales_that_saturate_keep_their_bias():
  """`optim.Slot` refuses them; rounding by hand shows why."""
  g = _normal(0, (64, 64))
  for scale, falls in (("pow2_floor", False), ("nvfp4_up", True)):
    quantizer = optim.Quantizer(optim.E2M1, -1, 16, scale)

    def error(count, quantizer=quantizer):
      keys = jax.random.split(jax.random.key(1), count)
      draw = jax.vmap(optim.round_random, (0, None, None))
      return jnp.linalg.norm(draw(keys, g, quantizer).mean(0) - g)

    ratio = float(error(16) / error(1024))
    assert ratio > 6 if falls else ratio < 3


def test_nvfp4_up_never_saturates():
  x = np.asarray(_normal(0, (256, 64))) ** 3
  x[:8] *= 1e-6
  for scale, none in (("nvfp4_up", True), ("nvfp4", False)):
    quantizer = optim.Quantizer(optim.E2M1, -1, 16, scale)
    step = np.asarray(optim.step_size(x, quantizer))
    over = np.abs(x) > 6 * step * (1 + 1e-6)
    assert over.any() != none


# --- Rotation, squares and the layers of others.


def test_a_rotation_cancels_where_nothing_is_rounded():
  x, w = _normal(0, (64, 48)), _normal(1, (48, 32))
  slots = optim.Slots(rotate=("y", "dx", "dw"))
  for found, wanted in zip(
    _pull("ij,jk->ik", x, w, slots), _pull("ij,jk->ik", x, w, optim.Slots()),
    strict=True,
  ):  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
  matrix = optim.hadamard(16, SIGNS)
  np.testing.assert_array_equal(matrix @ matrix.T, np.eye(16))
  np.testing.assert_allclose(
    rotated(x, 0, matrix)[16:32], matrix.T @ x[16:32], rtol=1e-5, atol=1e-5
  )


def test_a_rotation_helps_mxfp4_with_loud_tokens_and_not_nvfp4():
  x, w = _normal(0, (512, 64)), _normal(1, (64, 64))
  x = x.at[::16].multiply(10)
  exact = _pull("ij,jk->ik", x, w, optim.Slots())[2]

  def error(slot, rotate):
    slots = optim.Slots(x_dw=slot, g_dw=slot, rotate=rotate)
    found = _pull("ij,jk->ik", x, w, slots)[2]
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))

  mx, nv = optim.Slot(optim.E2M1), optim.Slot(optim.E2M1, 16, "nvfp4")
  assert error(mx, ("dw",)) < 0.8 * error(mx, ())
  assert error(nv, ("dw",)) > 0.9 * error(nv, ())


def test_square_blocks_are_the_same_for_both_products():
  square = optim.Slot(optim.E2M1, 16, "nvfp4", square=True)
  w = _normal(1, (48, 64))
  one = optim.round_nearest(w, square.quantizer((0, 1)))
  other = optim.round_nearest(w.T, square.quantizer((0, 1))).T
  np.testing.assert_array_equal(one, other)
  x = _normal(0, (32, 48))
  slots = optim.Slots(w_y=square, w_dx=square)
  y, dx, _ = _pull("ij,jk->ik", x, w, slots)
  np.testing.assert_allclose(y, x @ one, rtol=1e-5, atol=1e-5)
  g = _normal(9, y.shape)
  np.testing.assert_allclose(dx, g @ one.T, rtol=1e-5, atol=1e-5)


def test_flax_layers_and_the_einsum_agree():
  x, w = _normal(0, (2, 32, 48)), _normal(1, (48, 64))
  wanted = _pull("bld,df->blf", x, w, ALL)
  g = _normal(9, wanted[0].shape)
  hook = optim.quantized_dot_general(ALL)
  dense = nn.Dense(64, use_bias=False, dot_general=hook)
  linear = nnx.Linear(
    48, 64, use_bias=False, dot_general=hook, rngs=nnx.Rngs(0)
  )
  graph, _ = nnx.split(linear)

  def nnx_apply(x, w):
    state = nnx.state(linear)
    state["kernel"] = state["kernel"].replace(w)
    return nnx.merge(graph, state)(x)

  for apply in (
    lambda x, w: dense.apply({"params": {"kernel": w}}, x),
    nnx_apply,
  ):
    y, pull = jax.vjp(apply, x, w)
    for found, right in zip((y, *pull(g)), wanted, strict=True):
      np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(optim.PRODUCT_RECIPES))
def test_recipes_are_near_the_plain_product(name):
  slots = optim.PRODUCT_RECIPES[name]
  x, w = _normal(0, (2, 64, 64)), _normal(1, (64, 64))
  key = jax.random.key(0)
  found = _pull("bld,df->blf", x, w, slots, key)
  wanted = _pull("bld,df->blf", x, w, optim.Slots())
  limit = {"mxfp4": 0.25, "mxfp4_random": 0.3, "nvfp4": 0.25}.get(name, 0.1)
  for one, other in zip(found, wanted, strict=True):
    assert float(jnp.linalg.norm(one - other)) <= limit * float(
      jnp.linalg.norm(other)
    )


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optim.Slot("E4M3"), "grid='E4M3' must be a Grid"),
    (lambda: optim.Slot(optim.E4M3, 0), "block_size=0 must be an int >= 1"),
    (lambda: optim.Slot(optim.E4M3, scale="nvfp4"), "grid=E2M1 only"),
    (
      lambda: optim.Slot(optim.E2M1, 16, "nvfp4", random=True),
      "scale='nvfp4' saturates.*nvfp4_up",
    ),
    (lambda: optim.Slots(x_y=optim.E4M3), "x_y=.*must be an optim.Slot"),
    (lambda: optim.Slots(rotate=("dz",)), "rotate='dz' is not known"),
    (
      lambda: optim.Slots(backward_from="nothing"),
      "backward_from='nothing' is not known.*original, rounded",
    ),
    (lambda: optim.equation_axes("bld,dk"), "equation='bld,dk' must be"),
    (lambda: optim.equation_axes("...d,dk->...k"), "must be of two arrays"),
    (lambda: optim.equation_axes("ii,ik->ik"), "each letter at most once"),
    (lambda: optim.equation_axes("ijz,jk->ik"), "in two parts at least"),
    (
      lambda: optim.quantized_einsum("d,dk->k", jnp.ones(8), jnp.ones((8, 4)),
      ALL), "x_dw=.*must be None: its product sums no axis",
    ),
    (
      lambda: _pull("ij,jk->ik", jnp.ones((8, 8)), jnp.ones((8, 8)),
      optim.PRODUCT_RECIPES["nvfp4"]), "g_dx is rounded at random.*key",
    ),
    (
      lambda: _pull("ij,jk->ik", jnp.ones((8, 8)), jnp.ones((8, 8)),
      optim.Slots(rotate=("y",))), "axis 1 of an operand.*16 does not divide",
    ),
    (lambda: optim.hadamard(12), "size=12 must be a power of two"),
    (lambda: optim.hadamard(2, (1, 0)), r"signs=\(1, 0\) must be 2 numbers"),
  ],
)  # fmt: skip
def test_bad_input(make, message):
  with pytest.raises(ValueError, match=message):
    make()
