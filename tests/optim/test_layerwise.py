"""Groups of parameters: labels, diagonal blocks, overshoot, cost, meshes."""

import collections

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.flops import matmul_flops

import optim
from optim.curvature import groups as layerwise

LOSS = optim.softmax_cross_entropy()


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _flat(tree):
  return jax.flatten_util.ravel_pytree(tree)[0]


# --- Labels ------------------------------------------------------------------


def _tree(layers=12):
  block = dict(attention=dict(q=1.0, out=1.0), mlp=[1.0, 1.0])
  return dict(
    embed=dict(table=1.0),
    blocks={str(i): block for i in range(layers)},
    final_norm=dict(gain=1.0),
    head=1.0,
  )


RULES = {
  "embed": "embed",
  "block {}": ("blocks", "*"),
  "end": ["final_norm/gain", "head"],
}


def test_layer_one_is_not_layer_ten():
  labels = optim.path_groups(_tree(), RULES)
  assert labels["blocks"]["1"] == dict(
    attention=dict(q="block 1", out="block 1"), mlp=["block 1"] * 2
  )
  found = collections.Counter(jax.tree.leaves(labels))
  assert found == {f"block {i}": 4 for i in range(12)} | dict(embed=1, end=2)
  only = optim.path_groups(
    dict(blocks=_tree()["blocks"]),
    {"first": "blocks/1", "rest": [f"blocks/{i}" for i in (0, *range(2, 12))]},
  )
  assert collections.Counter(jax.tree.leaves(only)) == dict(first=4, rest=44)


def test_labels_of_lists_and_named_tuples():
  pair = collections.namedtuple("Pair", "left right")
  tree = pair([1.0, 2.0], dict(w=3.0))
  labels = optim.path_groups(tree, {"a": "left/0", "b": ["left/1", "right"]})
  assert labels == pair(["a", "b"], dict(w="b"))


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    (
      {"embed": "embed", "blocks": "blocks"},
      "no rule covers: final_norm/gain, head",
    ),
    (
      RULES | {"again": "head"},
      "several labels claim: head by 'again' and 'end'",
    ),
    (RULES | {"idle": "encoder"}, "cover no leaf: idle"),
    (RULES | {"block 1": "blocks/10"}, "claim: blocks/10/attention/out by"),
  ],
)
def test_rules_must_partition(rules, message):
  with pytest.raises(ValueError, match=message):
    optim.path_groups(_tree(), rules)


@pytest.mark.parametrize(
  ("scope", "message"),
  [
    (lambda p: dict(a="x", b=None), r"no label to params\['b'\]"),
    (lambda p: dict(a="x", b=("x", "y")), r"several labels to params\['b'\]"),
    (lambda p: dict(a="x"), "a tree of labels like params"),
    ("x", "scope='x' is not known"),
  ],
)
def test_scopes_must_partition(scope, message):
  with pytest.raises(ValueError, match=message):
    layerwise.label_tree(scope, dict(a=1.0, b=2.0))


# --- Local models ------------------------------------------------------------


def _params():
  shapes = dict(a=(4, 5), b=(5, 6), c=(6, 3))
  return {k: 0.7 * _normal(i, *s) for i, (k, s) in enumerate(shapes.items())}


def _mlp(params, batch):
  h = jnp.tanh(jnp.tanh(batch["x"] @ params["a"]) @ params["b"])
  return h @ params["c"]


def _batch():
  return dict(x=_normal(7, 7, 4), targets=jnp.arange(7) % 3)


def _labels(groups, params):
  """A tree of labels from {label: indices of its leaves}."""
  names = {i: label for label, members in groups.items() for i in members}
  treedef = jax.tree.structure(params)
  return treedef.unflatten([names[i] for i in range(treedef.num_leaves)])


def _sums(mode, groups, model=_mlp, params=None, batch=None, axis=None):
  params = _params() if params is None else params
  d = jax.tree.map(lambda x: 0.3 * jnp.cos(5 * x), params)
  batch = _batch() if batch is None else batch
  scope = _labels(groups, params)
  total = jax.jit(
    lambda d: layerwise.scoped_sums(
      model, LOSS, params, d, batch, mode, scope, axis
    )
  )(d)
  return total, params, d, batch


@pytest.mark.parametrize("mode", ["quadratic", "prox_linear", "nonlinear"])
def test_each_group_has_the_model_of_its_own_leaves(mode, float64):
  groups = dict(ends=(0, 2), middle=(1,))
  total, params, d, batch = _sums(mode, groups)
  values = []
  for members in (("a", "c"), ("b",)):
    own = {k: x if k in members else 0 * x for k, x in d.items()}
    value, grad = jax.jit(
      lambda own: optim.local_value_and_grad(
        _mlp, LOSS, params, own, batch, mode=mode
      )
    )(own)
    values.append(value)
    for k in members:
      np.testing.assert_allclose(total.grad[k] / 7, grad[k], atol=1e-12)
  assert float(total.values[0]) / 7 == pytest.approx(float(np.mean(values)))


def test_products_are_diagonal_blocks(float64):
  flat, unflatten = jax.flatten_util.ravel_pytree(_params())
  batch = _batch()

  def outputs(x):
    return _mlp(unflatten(x), batch).ravel()

  @jax.jit
  def dense(flat):
    jacobian = jax.jacobian(outputs)(flat)
    hessian = jax.hessian(lambda z: LOSS(z.reshape(7, 3), batch))
    return jacobian.T @ hessian(outputs(flat)) @ jacobian

  matrix = dense(flat)
  groups = dict(a=(0,), b=(1,), c=(2,))
  total, params, d, _ = _sums("quadratic", groups)
  at_zero = layerwise.scoped_sums(
    _mlp, LOSS, params, jax.tree.map(jnp.zeros_like, d), batch, "quadratic",
    _labels(groups, params),
  )  # fmt: skip
  image = _flat(total.grad) / 7 - _flat(at_zero.grad) / 7
  edges = np.cumsum([0, 20, 30, 18])
  for start, end in zip(edges, edges[1:], strict=False):
    block = matrix[start:end, start:end]
    wanted = block @ _flat(d)[start:end]
    np.testing.assert_allclose(image[start:end], wanted, atol=1e-12)
  full = optim.ggn_vector_product(_mlp, LOSS, params, batch, d)
  assert np.abs(_flat(full) - image).max() > 1e-3  # Cross blocks are dropped.


def _lm(head):
  """Body and head; the head may be tied, its own, or of two leaves."""

  def body(params, batch):
    return jnp.tanh(params["embed"][batch["tokens"][:, :-1]] @ params["mix"])

  def affine(part, hidden):
    return hidden @ part["kernel"] + part["bias"]

  return optim.chunked_lm_head(
    body,
    "embed" if head == "tied" else "head",
    3,
    transpose=head == "tied",
    head_fn=affine if head == "affine" else None,
  )


@pytest.mark.parametrize("head", ["tied", "untied", "affine"])
def test_with_a_chunked_head(head, float64):
  params = dict(embed=_normal(0, 11, 4), mix=_normal(1, 4, 4))
  if head == "untied":
    params["head"] = _normal(2, 4, 11)
  if head == "affine":
    params["head"] = dict(kernel=_normal(2, 4, 11), bias=_normal(5, 11))
  tokens = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 6)))
  batch = dict(tokens=tokens, targets=tokens[:, 1:])
  # Each leaf by itself: the two of an affine head are in different groups.
  groups = {str(i): (i,) for i in range(len(jax.tree.leaves(params)))}
  chunked = _lm(head)
  modes = ("quadratic", "prox_linear", "nonlinear")

  def all_modes(model):
    return jax.jit(
      lambda: [_sums(m, groups, model, params, batch)[0] for m in modes]
    )()

  for a, b in zip(
    all_modes(chunked), all_modes(lambda p, b: chunked(p, b)), strict=True
  ):
    np.testing.assert_allclose(_flat(a.grad), _flat(b.grad), atol=1e-12)
    assert float(a.values[0]) == pytest.approx(float(b.values[0]))


# --- Whole steps -------------------------------------------------------------


def _step(model, loss, params, batch, scope, steps=300, rate=0.3, **options):
  """One outer step of many plain gradient steps on one batch."""
  tx = optim.gauss_newton(
    model, loss, optax.sgd(1.0), inner_steps=steps, learning_rate=rate,
    scope=scope, **options,
  )  # fmt: skip
  batches = jax.tree.map(lambda x: jnp.stack([x] * steps), batch)
  search = jax.tree.map(lambda x: x[None], batch)
  return jax.jit(tx.update)(
    None, tx.init(params), params, batches=batches, ls_batches=search
  )


def test_separate_outputs_make_layerwise_the_full_step(float64):
  def model(params, batch):
    return jnp.stack(
      [batch["x"] @ params["u"], batch["x"] @ params["v"]], axis=-1
    )

  params = dict(u=_normal(0, 3), v=_normal(1, 3))
  batch = dict(x=_normal(2, 8, 3), targets=_normal(3, 8, 2))
  full, parts = (
    _step(model, optim.squared_error(), params, batch, scope, line_search=None)[
      0
    ]
    for scope in ("full", dict(u="u", v="v"))
  )
  np.testing.assert_allclose(_flat(full), _flat(parts), atol=1e-12)


@pytest.mark.parametrize("search", ["grid", "quadratic"])
def test_redundant_groups_overshoot_and_the_search_shortens(search, float64):
  # f = u + v + w + x = 0: each of four groups removes the whole residual.
  params = {k: jnp.ones(()) for k in "uvwx"}

  def model(params, batch):
    return sum(params.values()) * batch["x"]

  batch = dict(x=jnp.ones((1, 1)), targets=jnp.zeros((1, 1)))
  line_search = optim.LineSearch(num_batches=1)
  if search == "quadratic":
    line_search = optim.QuadraticLineSearch(num_batches=1)
  updates, state = _step(
    model, optim.squared_error(), params, batch, {k: k for k in params},
    line_search=line_search,
  )  # fmt: skip
  assert float(state.alpha) == pytest.approx(1 / 4, rel=1e-6)
  for x in updates.values():
    assert float(x) == pytest.approx(-1, rel=1e-6)
  _, full = _step(
    model, optim.squared_error(), params, batch, "full",
    line_search=line_search,
  )  # fmt: skip
  assert float(full.alpha) == 1


def test_candidates_reach_one_over_the_number_of_groups():
  params = {f"w{i:02}": jnp.ones(()) for i in range(14)}

  def losses(num):
    tx = optim.gauss_newton(
      None, LOSS, optax.sgd(1.0), inner_steps=1,
      scope={k: k for k in params}, line_search=optim.LineSearch(num),
    )  # fmt: skip
    return tx.init(params).info.losses

  assert len(losses(None)) == 9  # 2^(-8/2) = 1/16 <= 1/14.
  with pytest.raises(ValueError, match="num=5 ends at alpha=0.250, but 14"):
    losses(5)


def test_each_inner_state_holds_only_its_leaves():
  params = _params()
  tx = optim.gauss_newton(
    _mlp, LOSS, optax.adam(1.0), inner_steps=1,
    scope=lambda p: {k: "end" if k == "c" else "start" for k in p},
  )  # fmt: skip
  state = tx.init(params)
  groups = state.inner_state.inner_states
  assert sorted(groups) == ["end", "start"]
  sizes = {
    name: sum(x.size for x in jax.tree.leaves(group) if x.ndim)
    for name, group in groups.items()
  }
  assert sizes == dict(end=2 * 18, start=2 * 50)
  assert sum(x.size for x in jax.tree.leaves(state.delta)) == 68


# --- Cost --------------------------------------------------------------------


def test_groups_share_the_forward_pass_by_count():
  # Ten groups as the study's: embedding, eight blocks, head.
  width, layers = 16, 8
  params = dict(head=_normal(9, width, 24), embed=_normal(10, 24, width))
  for i in range(layers):
    params[f"in{i}"] = 0.2 * _normal(i, width, 4 * width)
    params[f"out{i}"] = 0.2 * _normal(i + 20, 4 * width, width)

  def model(params, batch):
    h = batch["x"] @ params["embed"]
    for i in range(layers):
      h = h + jnp.tanh(h @ params[f"in{i}"]) @ params[f"out{i}"]
    return h @ params["head"]

  batch = dict(x=_normal(1, 6, 24), targets=jnp.zeros(6, int))
  forward = matmul_flops(lambda p: model(p, batch), params)
  labels = {k: k.removeprefix("in").removeprefix("out") for k in params}
  groups = layerwise.find_groups(labels)
  assert len(groups) == 10

  def flops(mode):
    return matmul_flops(
      lambda p, d: (
        layerwise.scoped_sums(model, LOSS, p, d, batch, mode, labels).grad
      ),
      params,
      params,
    )

  def alone(group):  # Each group with a forward pass of its own.
    leaves, treedef = jax.tree.flatten(params)

    def part(own, batch):
      new = list(leaves)
      for i, x in zip(group, own, strict=True):
        new[i] = x
      return model(jax.tree.unflatten(treedef, new), batch)

    own = [leaves[i] for i in group]
    return matmul_flops(
      lambda p, d: optim.local_value_and_grad(part, LOSS, p, d, batch)[1],
      own,
      own,
    )

  # What lies behind each group, twice forward and twice back: about half of
  # 4 F for each. Nine more forward passes if they are not shared.
  shared = flops("quadratic") / forward
  assert shared < 16
  naive = sum(map(alone, groups.values())) / forward
  assert naive - shared == pytest.approx(9, rel=0.05)


# --- Meshes ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["quadratic", "nonlinear"])
def test_groups_shared_out_over_devices(mode):
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((2, 2), ("layer", "data"), axis_types=(auto,) * 2)
  groups = dict(a=(0,), b=(1,), c=(2,))
  wanted = _sums(mode, groups)[0]
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  batch = jax.tree.map(
    lambda x: jnp.tile(x, (2,) + (1,) * (x.ndim - 1)), _batch()
  )
  batch = jax.device_put(batch, spread)
  with jax.set_mesh(mesh):
    actual = jax.jit(
      lambda batch: _sums(mode, groups, batch=batch, axis="layer")[0]
    )(batch)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(a, 2 * b, rtol=1e-4, atol=1e-5)


def test_an_axis_needs_its_mesh():
  with pytest.raises(ValueError, match="group_axis='layer' is no axis"):
    _sums("quadratic", dict(a=(0, 1, 2)), axis="layer")
