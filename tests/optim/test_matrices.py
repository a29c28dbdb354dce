"""The matrix engine: layouts, refresh schedule, screening."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from optim.matrices import factors
from optim.matrices.options import MatrixOptions
from optim.matrices.refresh import make_schedule, refresh_side

PARAMS = dict(
  embed=jnp.zeros((40, 8)),
  layers=dict(
    wq=jnp.zeros((3, 8, 2, 4)),
    wo=jnp.zeros((3, 2, 4, 8)),
    gain=jnp.zeros((3, 8)),
  ),
  scalar=jnp.zeros(()),
)
DIMENSIONS = dict(
  embed=optim.DimensionNumbers(),
  layers=dict(
    wq=optim.DimensionNumbers(sides=(1, (2, 3)), stack=0),
    wo=optim.DimensionNumbers(sides=((1, 2), 3), stack=0),
    gain=None,
  ),
  scalar=None,
)


def _random_like(tree, seed=0):
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return treedef.unflatten(
    [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves]
  )


# Layout.


def test_equal_matrices_share_a_bucket():
  plan = optim.make_plan(PARAMS, DIMENSIONS, max_precond_dim=16)
  found = {b.name: (b.size, b.factored) for b in plan.buckets}
  assert found == {"40x8_1": (1, (False, True)), "8x8_01": (6, (True, True))}


def test_split_reads_the_axes_it_was_told():
  tree = _random_like(PARAMS)
  plan = optim.make_plan(tree, DIMENSIONS)
  stack = plan.split(tree).stacks["8x8_01"]
  np.testing.assert_array_equal(
    stack[:3], tree["layers"]["wo"].reshape(3, 8, 8)
  )
  np.testing.assert_array_equal(
    stack[3:], tree["layers"]["wq"].reshape(3, 8, 8)
  )


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_merge_undoes_split(data):
  shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
  axes = data.draw(st.permutations(range(len(shape))))
  cuts = sorted(
    data.draw(st.lists(st.integers(0, len(axes)), min_size=2, max_size=2))
  )
  groups = [axes[: cuts[0]], axes[cuts[0] : cuts[1]], axes[cuts[1] :]]
  sides = tuple(tuple(g) for g in groups[1:] if g)
  if not sides:
    return
  dims = optim.DimensionNumbers(sides=sides, stack=tuple(groups[0]))
  leaf = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  plan = optim.make_plan(
    leaf,
    dims,
    block_size=data.draw(st.sampled_from([None, 2, 3])),
    stack_shards=data.draw(st.sampled_from([1, 4])),
  )
  back = jax.jit(lambda x: plan.merge(plan.split(x), like=x))(leaf)
  np.testing.assert_array_equal(back, leaf)


def test_table_names_every_leaf_and_its_treatment():
  table = optim.treatment_table(PARAMS, DIMENSIONS, max_precond_dim=16)
  lines = {line.split()[0]: line for line in table.splitlines()}
  assert len(lines) == 1 + len(jax.tree.leaves(PARAMS))
  assert "identity, 8x8" in lines["['embed']"]
  assert "3 of 8x8" in lines["['layers']['wq']"]
  assert "element-wise" in lines["['layers']['gain']"]


@pytest.mark.parametrize(
  ("leaf", "dims", "words"),
  [
    (jnp.zeros((2, 3, 4)), None, ["['w']", "(2, 3, 4)", "sides=(1, 2)"]),
    (jnp.zeros((2, 3), jnp.int32), None, ["['w']", "int32", "optax.masked"]),
    (
      jnp.zeros((2, 3)),
      optim.DimensionNumbers(sides=(0, 2)),
      ["['w']", "(2, 3)", "once"],
    ),
    (
      jnp.zeros((2, 3, 4)),
      optim.DimensionNumbers(sides=(0, 1)),
      ["['w']", "(2, 3, 4)", "once"],
    ),
    (
      jnp.zeros((2, 3)),
      optim.DimensionNumbers(precondition=(2,)),
      ["precondition", "(2, 3)"],
    ),
    (jnp.zeros((2, 3)), "matrix", ["'matrix'", "DimensionNumbers"]),
  ],
)
@pytest.mark.parametrize("name", ["soap", "shampoo", "muon"])
def test_bad_leaves_are_named_at_init(name, leaf, dims, words):
  tx = getattr(optim, name)(1e-3, dimension_numbers=dims and dict(w=dims))
  with pytest.raises(ValueError) as error:
    tx.init(dict(w=leaf))
  for word in words:
    assert word in str(error.value)


def test_leaf_without_entry_is_named():
  tx = optim.soap(1e-3, dimension_numbers=dict(a=None))
  with pytest.raises(ValueError, match=r"\['b'\].*\(2, 3, 4\)"):
    tx.init(dict(a=jnp.zeros(2), b=jnp.zeros((2, 3, 4))))


@pytest.mark.parametrize(
  ("build", "words"),
  [
    (lambda: optim.soap(-1.0), "learning_rate=-1.0"),
    (lambda: optim.soap(1e-3, precondition_frequency=0), "frequency=0.*>= 1"),
    (lambda: optim.soap(1e-3, precondition_frequency=2.5), "2.5.*Python int"),
    (
      lambda: optim.soap(1e-3, precondition_frequency=jnp.asarray(3)),
      "static_args",
    ),
    (lambda: optim.soap(1e-3, b1=1.0), r"b1=1.0.*\[0, 1\)"),
    (lambda: optim.soap(1e-3, b2=-0.1), "b2=-0.1"),
    (lambda: optim.soap(1e-3, shampoo_beta=1.5), "shampoo_beta=1.5"),
    (lambda: optim.soap(1e-3, eps=-1.0), "eps=-1.0"),
    (lambda: optim.soap(1e-3, weight_decay=-0.1), "weight_decay=-0.1"),
    (lambda: optim.soap(1e-3, refresh="svd"), "refresh='svd'.*cholesky"),
    (lambda: optim.soap(1e-3, first_step="no"), "first_step='no'.*skip"),
    (lambda: optim.soap(1e-3, decay_order="l2"), "decay_order='l2'.*official"),
    (lambda: optim.soap(1e-3, precision=("high",)), "precision.*three"),
    (lambda: optim.soap(1e-3, block_size=0), "block_size=0"),
    (lambda: optim.shampoo(1e-3, exponent=0.0), "exponent=0.0"),
    (lambda: optim.shampoo(1e-3, grafting="sgd"), "grafting='sgd'.*none"),
    (lambda: optim.shampoo(1e-3, b1=2), "b1=2"),
    (lambda: optim.shampoo(1e-3, precondition_frequency=-1), "frequency=-1"),
    (lambda: optim.muon(1e-3, beta=1.0), "beta=1.0"),
    (lambda: optim.muon(1e-3, ns_steps=0), "ns_steps=0"),
    (lambda: optim.muon(1e-3, adam_learning_rate=-1), "learning_rate=-1"),
  ],
)
def test_bad_arguments_are_named_at_construction(build, words):
  with pytest.raises(ValueError, match=words):
    build()


def test_factorized_and_muon_want_matrices():
  dims = optim.DimensionNumbers(sides=(0, 1, 2))
  for tx in (
    optim.soap(1e-3, factorized=True, dimension_numbers=dims),
    optim.muon(1e-3, dimension_numbers=dims),
  ):
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) has 3 sides"):
      tx.init(jnp.zeros((2, 3, 4)))


def test_decay_without_params_says_so():
  tx = optim.soap(1e-3, weight_decay=0.1)
  grads = jnp.ones((2, 2))
  with pytest.raises(ValueError, match="pass them: tx.update"):
    jax.eval_shape(tx.update, grads, tx.init(grads))


# Refresh.


@pytest.mark.parametrize("frequency", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("shards", [1, 2])
def test_each_matrix_is_refreshed_once_a_period(frequency, shards):
  params = dict(a=jnp.zeros((5, 4, 3)), b=jnp.zeros((2, 3, 3)))
  dims = {k: optim.DimensionNumbers((1, 2), 0) for k in params}
  plan = optim.make_plan(params, dims, stack_shards=shards)
  options = MatrixOptions(
    precondition_frequency=frequency,
    placement=optim.Placement(stack_shards=shards),
  )
  schedule = make_schedule(plan, options)

  def mark(factor, old):
    return old + 1, jnp.full(len(old), True)

  state = factors.init(plan)
  for (name, side), refresh in schedule.items():
    for count in range(frequency):
      state[name], _ = refresh_side(
        refresh, jnp.asarray(count), True, mark, state[name], side
      )
  for bucket in state.values():
    for derived in bucket.derived:
      wanted = np.eye(derived.shape[-1]) + 1
      np.testing.assert_array_equal(
        derived, np.broadcast_to(wanted, derived.shape)
      )


def test_work_is_even_over_the_phases():
  params = {f"w{i}": jnp.zeros((20, 16, 16)) for i in range(2)}
  dims = optim.DimensionNumbers((1, 2), 0)
  plan = optim.make_plan(params, {k: dims for k in params})
  schedule = make_schedule(plan, MatrixOptions(precondition_frequency=10))
  work = [
    sum(r.size for r in schedule.values() if r.slot_of_phase[phase] >= 0)
    for phase in range(10)
  ]
  assert work == [8] * 10


@pytest.mark.parametrize(
  ("sides", "frequency"),
  [((16, *[8] * 8), 2), ((12, 12, 6, 6, 6, 6), 3), ((9, 7, 6, 5, 4, 3), 2)],
)
def test_even_work_is_even_in_cubes(sides, frequency):
  """A factorisation of n x n costs n^3: the best plan of all, by trying."""
  # One factored side a leaf, each in a bucket of its own.
  params = {f"w{i}": jnp.zeros((n, 50 + i)) for i, n in enumerate(sides)}
  options = MatrixOptions(precondition_frequency=frequency, max_precond_dim=16)
  load = np.zeros(frequency)
  for (name, side), turn in make_schedule(
    options.plan(params), options
  ).items():
    n = int(name.split("x")[side])
    load[turn.slot_of_phase.index(0)] += n**3
  assert load.sum() == sum(n**3 for n in sides)
  plans = itertools.product(range(frequency), repeat=len(sides))
  cubes = np.asarray(sides, float) ** 3
  best = min(
    max(cubes[np.asarray(plan) == k].sum() for k in range(frequency))
    for plan in plans
  )
  assert load.max() == best


def test_a_single_matrix_each_gets_phases_of_its_own():
  params = {
    "a": jnp.zeros((8, 6)),
    "b": jnp.zeros((6, 8)),
    "c": jnp.zeros((6, 6)),
  }
  options = MatrixOptions(precondition_frequency=6)
  schedule = make_schedule(optim.make_plan(params), options)
  used = [r.slot_of_phase.index(0) for r in schedule.values()]
  assert sorted(used) == [0, 1, 2, 3, 4, 5]


def test_failed_refresh_keeps_the_old_basis_and_is_counted():
  grads = _random_like(jnp.zeros((2, 4, 4)))
  tx = optim.scale_by_soap(
    precondition_frequency=1,
    dimension_numbers=optim.DimensionNumbers((1, 2), 0),
  )
  update = jax.jit(tx.update)
  _, state = update(grads, tx.init(grads))
  name, bucket = next(iter(state.kronecker.items()))
  left, right = bucket.factors
  broken = bucket._replace(factors=(left.at[1].set(jnp.nan), right))
  state = state._replace(kronecker={name: broken})
  updates, state = update(_random_like(grads, seed=1), state)
  after = state.kronecker[name]
  np.testing.assert_array_equal(after.derived[0][1], bucket.derived[0][1])
  assert not np.allclose(after.derived[0][0], bucket.derived[0][0])
  np.testing.assert_array_equal(after.failures, [0, 1])
  assert optim.refresh_counts((state, 0)) == (1, 0)
  assert np.all(np.isfinite(updates))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["soap", "shampoo", "muon"])
def test_a_bad_gradient_poisons_nothing(name, bad):
  params = dict(w=jnp.zeros((2, 4, 4)), b=jnp.zeros(3))
  dims = dict(w=optim.DimensionNumbers((1, 2), 0), b=None)
  options = {} if name == "muon" else dict(precondition_frequency=2)
  tx = getattr(optim, f"scale_by_{name}")(dimension_numbers=dims, **options)
  update, state = jax.jit(tx.update), tx.init(params)
  for step in range(6):
    grads = _random_like(params, seed=step)
    if step in (0, 3):  # The first call makes SOAP's first bases.
      grads["w"] = grads["w"].at[1, 2, 3].set(bad)
      grads["b"] = grads["b"].at[0].set(bad)
    updates, state = update(grads, state, params)
    for leaf in jax.tree.leaves((updates, state)):
      assert np.all(np.isfinite(leaf))
  assert np.all(np.asarray(updates["w"]) != 0)
  if name != "muon":
    bucket = next(iter(state.kronecker.values()))
    np.testing.assert_array_equal(bucket.rejections, [0, 2])
    assert optim.refresh_counts(state) == (0, 2)


def test_a_bad_gradient_counts_as_zero_for_its_matrix_only():
  params = jnp.zeros((2, 4, 4))
  dims = optim.DimensionNumbers((1, 2), 0)
  tx = optim.scale_by_soap(precondition_frequency=2, dimension_numbers=dims)
  good, zeroed, update = tx.init(params), tx.init(params), jax.jit(tx.update)
  for step in range(4):
    grads = _random_like(params, seed=step)
    bad = grads.at[1, 0, 0].set(jnp.nan) if step == 2 else grads
    zero = grads.at[1].set(0.0) if step == 2 else grads
    a, good = update(bad, good)
    b, zeroed = update(zero, zeroed)
    np.testing.assert_array_equal(a, b)


def test_zero_gradients_are_harmless():
  params = dict(w=jnp.zeros((4, 4)), b=jnp.zeros(3))
  for tx in (optim.soap(1e-3), optim.shampoo(1e-3), optim.muon(1e-3)):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
      updates, state = update(params, state, params)
      for leaf in jax.tree.leaves((updates, state)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
  "make",
  [
    optim.scale_by_shampoo,
    optim.scale_by_soap,
    optim.scale_by_kl_shampoo,
    optim.scale_by_soap_muon,
    optim.scale_by_moso,
  ],
)
def test_factorisations_take_turns_however_often_they_are(make):
  """Several batches in LAPACK at once wait for ever where cores are few.

  The branches of conditionals take turns, so each call has to be in one.
  """
  params = dict(a=jnp.ones((6, 6)), b=jnp.ones((6, 8)), c=jnp.ones((8, 6)))
  tx = make(precondition_frequency=1, stagger=False)
  state = jax.eval_shape(tx.init, params)
  program = jax.jit(tx.update).lower(params, state, params).compile()
  computations = program.as_text().split("\n\n")
  (entry,) = [text for text in computations if "ENTRY" in text]
  assert "lapack" not in entry
  assert any("lapack" in text for text in computations)
