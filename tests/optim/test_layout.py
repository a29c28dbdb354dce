"""Which axes are stacked, inputs or outputs: trees, prefixes, rules, optax."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

MATRIX = optim.DimensionNumbers()
METHODS = [optim.soap, optim.shampoo, optim.muon]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  """A tree with `__call__`, as the modules of Equinox are."""

  w: Any
  b: Any

  def __call__(self, x):
    return x @ self.w + self.b


def _buckets(params, dimension_numbers, **options):
  plan = optim.make_plan(params, dimension_numbers, **options)
  return {
    piece.path: (bucket.shape, piece.dims)
    for bucket in plan.buckets
    for piece in bucket.pieces
  }


LAYER = Layer(jnp.ones((3, 4)), jnp.ones(4))


@pytest.mark.parametrize("make", METHODS)
def test_a_tree_with_a_call_is_a_tree(make):
  numbers = Layer(MATRIX, None)
  tx = make(1e-2, dimension_numbers=numbers, mask=Layer(True, False))
  updates, _ = tx.update(LAYER, tx.init(LAYER), LAYER)
  assert isinstance(updates, Layer)
  nothing = Layer(None, None)  # Not even one leaf: element-wise, all of it.
  assert _buckets(LAYER, nothing) == {}


def test_other_trees_with_a_call_are_trees():
  quantizer = optim.Quantizer(optim.INT4)
  quantizers, mask = Layer(quantizer, None), Layer(True, False)
  rounded = optim.quantize_params(LAYER, quantizers, mask=mask)
  assert isinstance(rounded, Layer)
  tx = optim.lotion_adamw(1e-2, quantizers, 0.1, penalty_mask=mask)
  tx.update(LAYER, tx.init(LAYER), LAYER)
  model, labels = (lambda p, x: p(x)), Layer("w", "b")
  grads = [
    optim.local_value_and_grad(
      model, lambda z, x: jnp.mean(z**2), LAYER, LAYER, jnp.ones((2, 3)),
      scope=scope,
    )[1]
    for scope in (labels, lambda params: labels)
  ]  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, *grads)
  optim.gauss_newton(
    model, lambda z, x: jnp.mean(z**2), optax.sgd(1.0), inner_steps=1,
    scope=labels,
  ).init(LAYER)  # fmt: skip


@pytest.mark.parametrize(
  "function",
  [
    lambda params: Layer(optim.OUT_IN, None),
    functools.partial(lambda n, params: Layer(n, None), optim.OUT_IN),
    jax.tree_util.Partial(lambda params: Layer(optim.OUT_IN, None)),
    optim.by_rank({2: optim.OUT_IN}),
  ],
)
def test_functions_of_params_are_called(function):
  assert _buckets(LAYER, function)[".w"][0] == (4, 3)


NET = dict(
  conv=dict(kernel=jnp.zeros((3, 3, 2, 5)), bias=jnp.zeros(5)),
  layers=dict(q=jnp.zeros((6, 4, 4)), o=jnp.zeros((6, 4, 7))),
  head=jnp.zeros((4, 9)),
)
STACK = optim.DimensionNumbers(sides=(1, 2), stack=0)


def test_a_prefix_stands_for_what_is_below_and_the_rest_takes_the_default():
  numbers = dict(conv=dict(kernel=optim.CONV), layers=STACK)
  found = _buckets(NET, numbers)
  assert {path: shape for path, (shape, _) in found.items()} == {
    "['conv']['kernel']": (18, 5),
    "['layers']['q']": (4, 4),
    "['layers']['o']": (4, 7),
    "['head']": (4, 9),
  }
  # None turns a whole subtree off; a longer path wins over a shorter one.
  found = _buckets(NET, dict(conv=None, layers=STACK))
  assert "['conv']['kernel']" not in found
  mixed = dict(numbers, layers=dict(q=None, o=STACK))
  assert "['layers']['q']" not in _buckets(NET, mixed)
  # One entry for everything: a prefix as short as can be.
  assert set(_buckets(NET["layers"], STACK)) == {"['q']", "['o']"}


def test_updates_by_a_prefix_are_those_of_the_whole_tree():
  whole = dict(
    conv=dict(kernel=optim.CONV, bias=None), layers=dict(q=STACK, o=STACK),
    head=MATRIX,
  )  # fmt: skip
  short = dict(conv=dict(kernel=optim.CONV), layers=STACK)
  grads = jax.tree.map(
    lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)),
    NET,
  )
  made = []
  for numbers in (whole, short):
    tx = optim.scale_by_muon(dimension_numbers=numbers)
    made.append(tx.update(grads, tx.init(grads))[0])
  jax.tree.map(np.testing.assert_array_equal, *made)


def test_leaves_of_three_axes_must_be_told_and_entries_must_belong():
  with pytest.raises(ValueError, match=r"\['layers'\]\['o'\].*\(6, 4, 7\)"):
    _buckets(NET, dict(conv=None))
  with pytest.raises(
    ValueError, match=r"dimension_numbers\['kern'\] belongs to no leaf"
  ):
    _buckets(dict(kernel=NET["head"]), dict(kern=MATRIX))


def test_none_needs_no_leaf():
  """Trees made from a module have None where the module has no array."""
  numbers = dict(w=MATRIX, activation=None)
  assert set(_buckets(dict(w=jnp.ones((2, 3))), numbers)) == {"['w']"}
  params = dict(w=jnp.ones((2, 3)), activation=None)
  assert set(_buckets(params, numbers)) == {"['w']"}


@pytest.mark.parametrize("kind", ["masked", "partition"])
def test_entries_of_masked_leaves_belong(kind):
  numbers = dict(conv=dict(kernel=optim.CONV), layers=STACK)
  inner = optim.scale_by_muon(dimension_numbers=numbers)
  if kind == "masked":
    tx = optax.masked(inner, dict(conv=False, layers=True, head=True))
  else:
    labels = dict(conv="b", layers="a", head="a")
    tx = optax.partition(dict(a=inner, b=optax.identity()), labels)
  tx.update(NET, tx.init(NET))


def test_rules_by_rank():
  rule = optim.by_rank({4: optim.CONV, 3: STACK, 2: optim.OUT_IN})
  found = _buckets(NET, rule)
  assert found["['conv']['kernel']"][0] == (18, 5)
  assert found["['layers']['o']"][0] == (4, 7)
  assert found["['head']"][0] == (9, 4)
  assert "['conv']['bias']" not in found
  assert "['head']" not in _buckets(
    NET, optim.by_rank({2: None, 3: STACK, 4: None})
  )
  with pytest.raises(ValueError, match=r"\['kernel'\].*\(3, 3, 2, 5\)"):
    _buckets(NET, optim.by_rank({3: STACK}))


def test_out_in_turns_muons_scale():
  """[O, I] weights get the update of their transpose, transposed."""
  g = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)))
  muon = optim.scale_by_muon(beta=0.0)
  turned = optim.scale_by_muon(beta=0.0, dimension_numbers=optim.OUT_IN)
  a = muon.update(g, muon.init(g))[0]
  b = turned.update(g.T, turned.init(g.T))[0]
  np.testing.assert_allclose(a, b.T, atol=1e-6)
  wrong = muon.update(g.T, muon.init(g.T))[0]
  np.testing.assert_allclose(2 * wrong.T, a, atol=1e-5)  # sqrt(12 / 3).


def test_optaxs_dimension_numbers_give_optaxs_updates():
  """A first step without momentum, beside `optax.contrib.muon`."""
  spec = optax.contrib.MuonDimensionNumbers
  theirs = dict(
    conv=dict(kernel=spec((0, 1, 2), 3), bias=None),
    layers=dict(q=spec(1, 2), o=spec(-2, -1)),
    head=spec(1, 0),
  )
  grads = jax.tree.map(
    lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)),
    NET,
  )
  options = dict(beta=0.0, nesterov=False, ns_steps=5)
  optax_muon = optax.contrib.muon(
    1.0, muon_weight_dimension_numbers=theirs, **options
  )
  wanted = optax_muon.update(grads, optax_muon.init(NET), NET)[0]
  for tree in (theirs, lambda params: theirs):
    ours = optim.muon(
      1.0, dimension_numbers=optim.from_muon_dimension_numbers(tree), **options
    )
    actual = ours.update(grads, ours.init(NET), NET)[0]
    for part in ("layers", "head"):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        actual[part],
        wanted[part],
      )
    np.testing.assert_allclose(
      actual["conv"]["kernel"], wanted["conv"]["kernel"], atol=1e-4
    )
  default = optim.from_muon_dimension_numbers(None)
  assert set(_buckets(NET, default)) == {"['head']"}


# --- Targets of losses -------------------------------------------------------


@pytest.mark.parametrize(
  ("loss", "outputs", "targets", "words"),
  [
    (optim.squared_error(), (4, 1), (4,), r"\(4,\) and outputs \(4, 1\)"),
    (optim.squared_error(), (4,), (4,), r"z\[:, None\]"),
    (optim.squared_error(), (4, 2), (4, 1), r"\(4, 1\) and outputs \(4, 2\)"),
    (optim.squared_error(), (4, 1), (1, 4), r"\(1, 4\) and outputs"),
    (optim.softmax_cross_entropy(), (4, 3), (4, 1), r"a label belongs to each"),
    (optim.softmax_cross_entropy(), (4, 3), (3,), r"\(3,\) and outputs"),
    (
      optim.mean_loss(lambda z, y: (z[..., 0] - y) ** 2),
      (4, 1),
      (4, 1),
      r"has shape \(4, 4\).*shape \(4,\)",
    ),
  ],
)
def test_targets_of_another_shape_are_refused(loss, outputs, targets, words):
  batch = dict(targets=jnp.zeros(targets, jnp.int32))
  z = jnp.ones(outputs)
  with pytest.raises(ValueError, match=words):
    loss(z, batch)
  for product in (
    lambda: optim.ggn_vector_product(lambda p, b: p, loss, z, batch, z),
    lambda: optim.local_value_and_grad(lambda p, b: p, loss, z, z, batch),
  ):
    with pytest.raises(ValueError, match=words):
      product()


def test_the_mean_over_positions():
  z, y = jnp.asarray([[1.0], [2.0], [0.0], [1.0]]), jnp.zeros((4, 1))
  np.testing.assert_allclose(
    optim.squared_error()(z, dict(targets=y)), (1 + 4 + 0 + 1) / 2 / 4
  )
