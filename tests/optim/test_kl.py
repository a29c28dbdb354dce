"""KL factors: an oracle in float64, and laws of KL-Shampoo and KL-SOAP.

The authors' own trajectories are in `test_authors.py`.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from oracles.kl import KL

import optim
from optim.matrices import kl_factors, padding

AUTHORS_KL_SOAP = dict(
  factors="kl", first_step="skip", bias_correction=False, square_fields=()
)


def _grads(*shape, steps=20, seed=0):
  """Gradients whose covariance is far from the identity; full rank."""
  rng = np.random.default_rng(seed)
  scales = [1.5 ** -np.arange(n) for n in shape[-2:]]
  turn = [np.linalg.qr(rng.normal(size=(n, n)))[0] for n in shape[-2:]]
  noise = rng.normal(size=(steps, *shape)) * np.outer(*scales)
  return turn[0] @ noise @ turn[1]


def _run(tx, grads, state=None):
  """Updates for a list of trees, and the states after each."""
  state = tx.init(grads[0]) if state is None else state
  update, updates, states = jax.jit(tx.update), [], []
  for g in grads:
    u, state = update(g, state)
    updates.append(u)
    states.append(state)
  return updates, states


@pytest.mark.parametrize(
  ("shape", "options"),
  [
    ((4, 6), dict(modes=(0,))),
    ((5, 5), dict(start=0.3, damping=0.1)),
    ((3, 4, 4), dict(beta=0.9)),
    ((4, 6), dict(modes=(0,), second_moment=True)),
    ((5, 5), dict(second_moment=True)),
  ],
  ids=str,
)
def test_equals_oracle_in_float64(shape, options):
  # On tensors of full rank in every side.
  grads = [2 * g for g in _grads(*shape)]
  oracle = KL(shape, **options)
  wanted = np.stack([oracle.step(g) for g in grads])
  options = dict(options)
  second_moment = options.pop("second_moment", False)
  dims = optim.DimensionNumbers(
    tuple(range(len(shape))), precondition=options.pop("modes", None)
  )
  common = dict(
    dimension_numbers=dims,
    precondition_frequency=3,
    stagger=False,
    shampoo_beta=options.get("beta"),
    eigenvalues=optim.Eigenvalues(
      start=options.get("start"),
      first_gram=options.get("start"),
      damping=options.get("damping", 0.0),
    ),
  )
  with jax.enable_x64(True):
    if second_moment:
      tx = optim.scale_by_soap(**common, **AUTHORS_KL_SOAP)
    else:
      tx = optim.scale_by_kl_shampoo(**common, relative_eps=False)
    actual, _ = _run(tx, [jnp.asarray(g) for g in grads])
    actual = np.stack(actual)
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
  "make",
  [
    functools.partial(optim.scale_by_soap, eps=0.0),
    functools.partial(optim.scale_by_soap, eps=0.0, factors="kl"),
    optim.scale_by_kl_shampoo,
  ],
  ids=["soap", "kl_soap", "kl_shampoo"],
)
def test_the_scale_of_the_gradients_does_not_matter(make):
  # One leaf for each scale; all are refreshed at once.
  tx = make(precondition_frequency=3, stagger=False)
  grads = [
    {c: jnp.asarray(c * g, jnp.float32) for c in (1e-6, 1e-3, 1.0, 7.0, 1e3)}
    for g in _grads(5, 5, steps=12)
  ]
  for updates in _run(tx, grads)[0]:
    for u in updates.values():
      np.testing.assert_allclose(u, updates[1.0], rtol=0, atol=1e-5)


def _bucket(params, **options):
  """The plan, its one bucket, and a state of it that has eigenvalues."""
  tx = optim.scale_by_kl_shampoo(**options)
  plan = optim.make_plan(params, **options)
  (bucket,) = plan.buckets
  return plan, bucket, tx.init(params).kronecker[bucket.name]


def test_equal_eigenvalues_whiten_nothing_but_the_scale():
  # The other side's factor is 3: its statistics are Gram's, over 3 and n.
  x = jnp.asarray(_grads(4, 6, steps=1)[0], jnp.float32)[None]
  _, bucket, kept = _bucket(x[0])
  turn = [np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]
          for n in (4, 6)]  # fmt: skip
  kept = kept._replace(
    derived=tuple(jnp.asarray(q, jnp.float32)[None] for q in turn),
    scales=(jnp.full((1, 4), 5.0), jnp.full((1, 6), 3.0)),
  )
  whiten = kl_factors.whitener(optim.Eigenvalues(), "highest")
  _, (left, right) = whiten(bucket, kept, x)
  np.testing.assert_allclose(left @ left.mT, x @ x.mT / (3 * 6), atol=1e-6)
  np.testing.assert_allclose(right.mT @ right, x.mT @ x / (5 * 4), atol=1e-6)


def test_one_sided_kl_soap_is_one_sided_soap():
  # Nothing whitens: the factor is Gram's over n, and its basis the same.
  grads = [jnp.asarray(g, jnp.float32) for g in _grads(4, 7)]
  gram, kl = (
    optim.scale_by_soap(
      factors=factors, one_sided=True, precondition_frequency=3
    )
    for factors in ("gram", "kl")
  )
  (wanted, left), (actual, right) = _run(gram, grads), _run(kl, grads)
  np.testing.assert_allclose(
    7 * right[-1].kronecker["4x7_0"].factors[0],
    left[-1].kronecker["4x7_0"].factors[0],
    rtol=1e-4, atol=1e-6,
  )  # fmt: skip
  np.testing.assert_allclose(np.stack(actual), np.stack(wanted), atol=2e-4)


def test_blocks_count_their_own_columns():
  # A side of 5 is cut into 3 and 2, and the 2 is padded.
  grads = _grads(5, 6)
  options = dict(precondition_frequency=2, stagger=False, eps=0.0)
  with jax.enable_x64(True):
    cut = optim.scale_by_kl_shampoo(block_size=3, **options)
    apart = optim.scale_by_kl_shampoo(**options)
    whole, _ = _run(cut, [jnp.asarray(g) for g in grads])
    parts = [
      {f"{i}{j}": jnp.asarray(g[i : i + n, j : j + 3])
       for i, n in ((0, 3), (3, 2)) for j in (0, 3)} for g in grads
    ]  # fmt: skip
    parts, _ = _run(apart, parts)
    joined = [np.block([[p["00"], p["03"]], [p["30"], p["33"]]]) for p in parts]
    whole = np.stack(whole)
  np.testing.assert_allclose(whole, np.stack(joined), rtol=0, atol=1e-10)
  (bucket,) = optim.make_plan(grads[0], block_size=3).buckets
  assert padding.lengths(bucket).tolist() == [[3, 3], [3, 3], [2, 3], [2, 3]]


@hypothesis.given(
  st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.integers(2, 5)
)
@hypothesis.settings(deadline=None, max_examples=15)
def test_lengths_count_what_is_not_padding(rows, columns, layers, block_size):
  shape = (layers, rows, columns)
  plan = optim.make_plan(
    jax.ShapeDtypeStruct(shape, jnp.float32),
    optim.DimensionNumbers((1, 2), 0),
    block_size=block_size,
  )
  ones = np.asarray(plan.split(np.ones(shape, np.float32)).stacks.popitem()[1])
  (bucket,) = plan.buckets
  counted = np.broadcast_to(padding.entries(bucket, np.float32), len(ones))
  np.testing.assert_array_equal(counted, ones.sum(axis=(1, 2)))
  lengths = np.broadcast_to(padding.lengths(bucket), (len(ones), 2))
  np.testing.assert_array_equal(lengths[:, 0], ones[:, :, 0].sum(axis=1))


def test_eigenvalues_follow_eigenvectors_that_are_made_anew():
  rng = np.random.default_rng(0)
  old, new = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
  l = rng.uniform(0.1, 1.0, size=(1, 5)).astype(np.float32)
  pair = (
    jnp.asarray(old[None], jnp.float32),
    jnp.asarray(new[None], jnp.float32),
  )
  turned = kl_factors.carry(jnp.asarray(l), *pair, True, "highest")
  whole = old * l[0] @ old.T
  np.testing.assert_allclose(turned[0], np.diag(new.T @ whole @ new), rtol=1e-5)
  kept = kl_factors.carry(jnp.asarray(l), *pair, jnp.asarray(False), "highest")
  np.testing.assert_array_equal(kept, l)


def test_eigenvalues_start_with_the_first_gradient_that_is_not_zero():
  first = _grads(4, 4, steps=6)
  zero = np.zeros((4, 4))
  grads = [jnp.asarray(g, jnp.float32) for g in (zero, *first, zero, *first)]
  updates, states = _run(optim.scale_by_kl_shampoo(), grads)
  l = [np.stack(s.kronecker["4x4_01"].scales) for s in states]
  assert not np.any(l[0])
  np.testing.assert_allclose(l[1], np.sqrt(np.mean(first[0] ** 2)), rtol=1e-5)
  np.testing.assert_array_equal(l[7], l[6])
  assert not np.any(updates[0])
  assert np.all(np.isfinite(updates))
  assert np.all(np.abs(updates[-1]) > 0)


@pytest.mark.parametrize("name", ["scale_by_kl_shampoo", "scale_by_soap"])
def test_nothing_moves_where_no_gradient_is(name):
  rng = np.random.default_rng(0)
  left = np.linalg.qr(rng.normal(size=(12, 3)))[0]
  grads = [
    jnp.asarray(left @ rng.normal(size=(3, 16)), jnp.float32) for _ in range(30)
  ]
  options = {} if name == "scale_by_kl_shampoo" else AUTHORS_KL_SOAP
  tx = getattr(optim, name)(precondition_frequency=3, **options)
  total = np.asarray(sum(_run(tx, grads)[0]), np.float64)
  off = total - left @ (left.T @ total)
  assert np.linalg.norm(off) < 1e-4 * np.linalg.norm(total)


def test_each_matrix_is_refreshed_once_in_a_period():
  grads = dict(a=_grads(7, 4, 4, steps=31), b=_grads(6, 5, steps=31))
  grads = [
    {k: jnp.asarray(g[i], jnp.float32) for k, g in grads.items()}
    for i in range(31)
  ]
  dims = dict(a=optim.DimensionNumbers((1, 2), 0), b=optim.DimensionNumbers())
  _, states = _run(optim.scale_by_kl_shampoo(dimension_numbers=dims), grads)
  for name in states[0].kronecker:
    for side in range(2):
      q = np.stack([s.kronecker[name].derived[side] for s in states])
      changed = np.any(q[1:] != q[:-1], axis=(2, 3)).reshape(3, 10, -1)
      np.testing.assert_array_equal(changed.sum(axis=1), 1)


@pytest.mark.parametrize(
  "name", ["kl_shampoo", pytest.param("kl_soap", marks=pytest.mark.slow)]
)
def test_devices_change_nothing(name):
  grads = _grads(8, 4, 4, steps=14)
  dims = optim.DimensionNumbers((1, 2), 0)
  runs = []
  with jax.enable_x64(True):
    for devices in (1, 4):
      mesh = jax.make_mesh(
        (devices,), ("a",), axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
      )  # fmt: skip
      tx = getattr(optim, name)(
        1.0,
        weight_decay=0.0,
        dimension_numbers=dims,
        placement=optim.Placement("a", 4),
      )
      with jax.set_mesh(mesh):
        updates, _ = _run(tx, [jnp.asarray(g) for g in grads])
        runs.append(np.stack(updates))
  np.testing.assert_allclose(*runs, rtol=0, atol=1e-12)


def test_statistics_are_whitened_in_place_of_the_gradients():
  grads, seen = (
    [jnp.asarray(g, jnp.float32) for g in _grads(4, 4, steps=2, seed=seed)]
    for seed in (0, 1)
  )
  for tx in (optim.scale_by_soap(factors="kl"), optim.scale_by_kl_shampoo()):
    state = other = tx.init(grads[0])
    for g, s in zip(grads, seen, strict=True):
      _, state = tx.update(g, state, statistics=s)
      _, other = tx.update(s, other)
    same = state.kronecker, other.kronecker
    jax.tree.map(np.testing.assert_array_equal, *same)


def test_aliases_decay_after_the_call_that_is_skipped():
  params, grads = jnp.ones((4, 4)), jnp.asarray(_grads(4, 4)[0], jnp.float32)
  for alias, direction, options in (
    (optim.kl_shampoo, optim.scale_by_kl_shampoo(), {}),
    (
      optim.kl_soap,
      optim.scale_by_soap(factors="kl", first_step="skip"),
      dict(first_step="skip"),
    ),
  ):
    tx = alias(0.1, weight_decay=0.2, **options)
    state, other = tx.init(params), direction.init(params)
    updates, state = tx.update(grads, state, params)
    assert not np.any(updates)
    _, other = direction.update(grads, other)
    updates, _ = tx.update(grads, state, params)
    u, _ = direction.update(grads, other)
    np.testing.assert_allclose(updates, -0.1 * (u + 0.2 * params), rtol=1e-5)


def test_the_size_of_an_update():
  # Of SOAP's the authors' runs have both.
  grads = [jnp.asarray(g, jnp.float32) for g in _grads(4, 6, steps=3)]
  rms = lambda u: np.sqrt(np.mean(np.square(u)))  # noqa: E731
  make = optim.scale_by_kl_shampoo
  plain, _ = _run(make(), grads)
  matched, _ = _run(make(update_rms=0.2), grads)
  limit = float(rms(plain[1])) * 0.9
  capped, _ = _run(make(max_update_rms=limit), grads)
  for u, match, cap in zip(plain[1:], matched[1:], capped[1:], strict=True):
    np.testing.assert_allclose(match, 0.2 * u / rms(u), atol=1e-6)
    share = min(1, limit / (rms(u) + 1e-7))
    np.testing.assert_allclose(cap, share * u, atol=1e-6)


def test_state_sizes_are_the_documented_ones():
  d = 64
  block = {k: (d, d) for k in "qkvo"} | dict(w1=(d, 4 * d), w2=(4 * d, d))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in block.items()}
  size = sum(p.size for p in params.values())
  for tx, wanted in (
    (optim.scale_by_kl_shampoo(), 8),
    (optim.scale_by_soap(factors="kl"), 9),
  ):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    words = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert wanted < words / size < wanted + 0.03


def test_refusals_say_what_to_do():
  for options, text in (
    (dict(factors="jl"), "gram, kl"),
    (dict(refresh_steps=2, refresh="eigh"), "refresh='qr'"),
    (dict(normalize=True, update_rms=0.2), "one of the two"),
    (dict(nesterov=True, inner=optax.scale_by_adam()), "nesterov=True"),
    (dict(eigenvalues=optim.Eigenvalues(start=0.0)), "eigenvalues.start"),
    (dict(max_update_rms=-1.0), "max_update_rms=-1.0"),
  ):
    with pytest.raises(ValueError, match=text):
      optim.scale_by_soap(**options)
  params = jnp.ones((3, 4))
  state = optim.scale_by_soap(factors="kl").init(params)
  with pytest.raises(ValueError, match="factors='gram'"):
    optim.factor_diagonal(state, params)
