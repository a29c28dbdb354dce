"""SOAP against the authors' trajectories, an oracle, reductions and laws."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.adam import adam_directions
from oracles.soap import Soap

import optim

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "soap_official.npz"
CASES = (
  "no_bias_correction",
  "normalize",
  "one_sided",
  "square_betas",
  "square_f1",
  "square_f10",
  "square_f3_wd",
  "tensor3",
  "unpreconditioned",
  "vector",
)
OFFICIAL = dict(stagger=False, first_step="skip", refresh="qr")
PARITY = OFFICIAL | dict(square_fields=())


def _grads(shape, steps=30, seed=0, drift=0.3):
  """Gradients with a spectrum, whose covariance turns slowly."""
  rng = np.random.default_rng(seed)
  scale = (1.0 + np.arange(shape[-1])) ** -0.7
  mix = rng.normal(size=(shape[-1],) * 2)
  result = []
  for _ in range(steps):
    mix = mix + drift * rng.normal(size=mix.shape) / np.sqrt(shape[-1])
    result.append((rng.normal(size=shape) * scale @ mix).astype(np.float32))
  return result


def _run(tx, grads, params=None, jit=True):
  """Updates for a list of trees; also the last state."""
  params = jax.tree.map(jnp.zeros_like, grads[0]) if params is None else params
  state, result = tx.init(params), []
  update = jax.jit(tx.update) if jit else tx.update
  for g in grads:
    updates, state = update(g, state, params)
    result.append(updates)
  return result, state


def _close(actual, expected, rtol=2e-4):
  """Relative to the largest entry of the run: small ones are round-off."""
  scale = max(np.abs(e).max() for e in expected)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, atol=rtol * scale, rtol=0)


def _rotation(n, seed):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def test_golden_file_has_the_ten_cases():
  with np.load(GOLDEN) as data:
    assert {key.split("/")[0] for key in data.files} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_equals_authors_trajectory(case):
  with np.load(GOLDEN) as data:
    options = json.loads(str(data[f"{case}/hyperparameters"]))
    grads, wanted = data[f"{case}/grads"], data[f"{case}/params"]
    params = jnp.asarray(data[f"{case}/params0"])
  beta = options["shampoo_beta"]
  every_axis = optim.DimensionNumbers(sides=tuple(range(params.ndim)))
  tx = optim.soap(
    options["learning_rate"],
    b1=options["b1"],
    b2=options["b2"],
    shampoo_beta=None if beta == -1 else beta,
    eps=options["eps"],
    weight_decay=options["weight_decay"],
    decay_order="official",
    precondition_frequency=options["precondition_frequency"],
    max_precond_dim=options["max_precond_dim"],
    normalize=options["normalize_grads"],
    bias_correction=options["correct_bias"],
    dimension_numbers=every_axis if params.ndim > 1 else None,
    **PARITY,
  )
  state, update = tx.init(params), jax.jit(tx.update)
  for g, w in zip(grads, wanted, strict=True):
    updates, state = update(jnp.asarray(g), state, params)
    params = optax.apply_updates(params, updates)
    # The specification allows 5e-5; 2e-6 is what float32 gives here.
    np.testing.assert_allclose(params, w, atol=4e-6, rtol=0)


@pytest.mark.parametrize(
  "options",
  [
    dict(frequency=1),
    dict(frequency=4, shampoo_beta=0.9, b1=0.9, b2=0.98),
    dict(frequency=3, factorized=True),
    dict(frequency=3, normalize=True, bias_correction=False),
    dict(frequency=3, use_current=True),
    dict(frequency=2, eps=0.1),
    dict(frequency=3, turn_squares=False),
    dict(frequency=3, modes=(1,)),
  ],
  ids=str,
)
def test_equals_oracle_in_float64(options):
  grads = _grads((6, 6), steps=25)
  oracle = Soap((6, 6), **options)
  wanted = [oracle.step(g) for g in grads]
  arguments = dict(options)
  use_current = arguments.pop("use_current", False)
  frequency = arguments.pop("frequency")
  if not arguments.pop("turn_squares", True):
    arguments["square_fields"] = ()
  if modes := arguments.pop("modes", None):
    arguments["dimension_numbers"] = optim.DimensionNumbers(precondition=modes)
  with jax.enable_x64(True):
    tx = optim.scale_by_soap(
      **arguments,
      precondition_frequency=frequency,
      **OFFICIAL | dict(first_step="use_current" if use_current else "skip"),
    )
    actual, _ = _run(tx, [jnp.asarray(g, jnp.float64) for g in grads])
    assert actual[0].dtype == jnp.float64
    # The first gradient is diagonal in its own eigenbasis: off the diagonal
    # there is round-off, which Adam divides by eps.
    _close(actual, wanted, rtol=1e-6 if use_current else 1e-10)


def test_cholesky_equals_qr():
  grads = _grads((8, 8), drift=0.1)
  runs = [
    _run(optim.scale_by_soap(refresh=r, precondition_frequency=2), grads)[0]
    for r in ("qr", "cholesky")
  ]
  _close(runs[1], [np.asarray(u) for u in runs[0]])


def test_without_factors_is_adam():
  grads = _grads((5, 7))
  tx = optim.scale_by_soap(
    0.9, 0.97, eps=0.02, max_precond_dim=1, first_step="use_current"
  )
  _close(_run(tx, grads)[0], adam_directions(grads, 0.9, 0.97, 0.02), 1e-5)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_nesterov_without_factors_is_nadam(b1):
  grads = _grads((5, 7), steps=8)
  tx = optim.scale_by_soap(
    b1, 0.97, max_precond_dim=1, first_step="use_current", nesterov=True
  )
  wanted = _run(optax.scale_by_adam(b1, 0.97, nesterov=True), grads)[0]
  _close(_run(tx, grads)[0], wanted, 1e-5)


def test_diagonal_covariances_are_adam():
  # The eigenbasis of a diagonal factor is the identity, up to order and sign.
  rng = np.random.default_rng(0)
  grads = []
  for _ in range(12):
    g = np.zeros((6, 6), np.float32)
    g[np.arange(6), np.arange(6)] = rng.normal(size=6) * 2.0 ** np.arange(6)
    grads.append(g)
  # eps keeps the round-off where the gradient is zero from being divided.
  tx = optim.scale_by_soap(eps=1e-3, precondition_frequency=2, **PARITY)
  wanted = adam_directions(grads[1:], 0.95, 0.95, 1e-3)
  _close(_run(tx, grads)[0][1:], wanted, 5e-3)


@pytest.mark.parametrize("stagger", [True, False])
def test_rotating_the_spaces_rotates_the_updates(stagger):
  grads = _grads((6, 6))
  left, right = _rotation(6, 1), _rotation(6, 2)
  turned = [(left @ g @ right).astype(np.float32) for g in grads]
  tx = optim.scale_by_soap(
    precondition_frequency=3, stagger=stagger, first_step="skip"
  )
  plain, rotated = _run(tx, grads)[0], _run(tx, turned)[0]
  _close(rotated, [left @ np.asarray(u) @ right for u in plain], 1e-3)


def test_signs_and_order_of_the_basis_do_not_matter():
  grads = _grads((6, 6), steps=20)
  tx = optim.scale_by_soap(precondition_frequency=3, first_step="skip")
  update = jax.jit(tx.update)
  _, state = update(grads[0], tx.init(grads[0]))
  name, bucket = next(iter(state.kronecker.items()))
  # Nothing has been averaged in the basis yet, so it may be relabelled.
  order, sign = np.array([3, 0, 5, 1, 4, 2]), np.array([1, -1, 1, 1, -1, -1])
  left, right = bucket.derived
  changed = bucket._replace(derived=(left[..., order] * sign, right * -sign))
  other = state._replace(kronecker={name: changed})
  for g in grads[1:]:
    a, state = update(g, state)
    b, other = update(g, other)
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_factorized_is_full_for_a_rank_one_square():
  # In the (fixed) basis the gradient is an outer product times a scalar.
  rng = np.random.default_rng(0)
  outer = np.outer(1 + np.arange(5.0), 2.0 ** np.arange(5)).astype(np.float32)
  grads = [(outer * c).astype(np.float32) for c in rng.normal(size=12)]
  tx = [
    optim.scale_by_soap(factorized=f, first_step="identity", stagger=False,
                        precondition_frequency=1000)
    for f in (False, True)
  ]  # fmt: skip
  full, factorized = (_run(t, grads)[0] for t in tx)
  _close(factorized, [np.asarray(u) for u in full], 1e-5)


def test_one_sided_takes_the_shorter_side():
  state = optim.scale_by_soap(one_sided=True).init(
    dict(wide=jnp.zeros((4, 6)), tall=jnp.zeros((6, 4)), even=jnp.zeros((5, 5)))
  )
  shapes = {
    name: [None if f is None else f.shape for f in bucket.factors]
    for name, bucket in state.kronecker.items()
  }
  assert shapes == {
    "4x6_0": [(1, 4, 4), None],
    "6x4_1": [None, (1, 4, 4)],
    "5x5_1": [None, (1, 5, 5)],
  }


def test_stagger_at_frequency_one_is_unstaggered():
  params = dict(a=np.zeros((3, 6, 6)), b=np.zeros((6, 6)), c=np.zeros((6, 4)))
  grads = [
    {k: g[: np.size(v)].reshape(v.shape) for k, v in params.items()}
    for g in (x.ravel() for x in _grads((20, 6), steps=10))
  ]
  dims = dict(
    a=optim.DimensionNumbers((1, 2), 0),
    b=optim.DimensionNumbers(),
    c=optim.DimensionNumbers(),
  )
  runs = [
    _run(
      optim.scale_by_soap(
        precondition_frequency=1, stagger=s, dimension_numbers=dims
      ),
      grads,
    )[0]
    for s in (True, False)
  ]
  jax.tree.map(np.testing.assert_array_equal, *runs)


def test_layers_stacked_or_apart_are_the_same():
  stacked = _grads((4, 6, 5), steps=12)
  tx = optim.scale_by_soap(
    precondition_frequency=2,
    dimension_numbers=optim.DimensionNumbers((1, 2), 0),
  )
  apart = optim.scale_by_soap(precondition_frequency=2)
  together, _ = _run(tx, stacked)
  alone, _ = _run(apart, [{str(i): g[i] for i in range(4)} for g in stacked])
  for a, b in zip(together, alone, strict=True):
    for i in range(4):
      np.testing.assert_array_equal(a[i], b[str(i)])


def test_heads_merge_into_a_side():
  grads = _grads((6, 4), steps=8)
  merged = _run(optim.scale_by_soap(precondition_frequency=2), grads)[0]
  split = optim.scale_by_soap(
    precondition_frequency=2,
    dimension_numbers=optim.DimensionNumbers(sides=(0, (1, 2))),
  )
  heads = _run(split, [g.reshape(6, 2, 2) for g in grads])[0]
  for a, b in zip(merged, heads, strict=True):
    np.testing.assert_array_equal(a, b.reshape(6, 4))


def test_blocks_are_matrices_of_their_own():
  grads = _grads((6, 8), steps=12)
  tx = optim.scale_by_soap(precondition_frequency=2, block_size=4)
  blocked, state = _run(tx, grads)
  assert list(state.kronecker) == ["3x4_01"]
  apart = optim.scale_by_soap(precondition_frequency=2)
  pieces = [
    {f"{i}{j}": g[3 * i : 3 * i + 3, 4 * j : 4 * j + 4]
     for i in range(2) for j in range(2)} for g in grads
  ]  # fmt: skip
  for whole, parts in zip(blocked, _run(apart, pieces)[0], strict=True):
    rows = [
      jnp.concatenate([parts[f"{i}0"], parts[f"{i}1"]], 1) for i in (0, 1)
    ]
    np.testing.assert_array_equal(whole, jnp.concatenate(rows))


def test_identity_starts_as_adam_then_finds_the_eigenvectors():
  grads = _grads((6, 6), steps=12)
  tx = optim.scale_by_soap(
    precondition_frequency=5, first_step="identity", stagger=False
  )
  updates, state = _run(tx, grads[:1])
  _close(updates, adam_directions(grads[:1], 0.95, 0.95, 1e-8), 1e-5)
  _, state = _run(tx, grads[:6])
  bucket = state.kronecker["6x6_01"]
  for factor, basis in zip(bucket.factors, bucket.derived, strict=True):
    inside = np.asarray(basis[0].T @ factor[0] @ basis[0])
    off = inside - np.diag(np.diag(inside))
    assert np.linalg.norm(off) < 1e-5 * np.linalg.norm(inside)


def test_another_rule_in_the_basis():
  # Lion of a rotated gradient, while the basis of the first call stays.
  grads = _grads((6, 6), steps=10)
  tx = optim.scale_by_soap(
    inner=optax.scale_by_lion(0.9, 0.99),
    first_step="skip",
    precondition_frequency=100,
    stagger=False,
  )
  actual, state = _run(tx, grads)
  left, right = (np.asarray(q[0]) for q in state.kronecker["6x6_01"].derived)
  lion = optax.scale_by_lion(0.9, 0.99)
  rotated = [(left.T @ g @ right) for g in grads[1:]]
  wanted = [left @ np.asarray(u) @ right.T for u in _run(lion, rotated)[0]]
  _close(actual[1:], wanted, 1e-5)


def test_momentum_turns_with_the_basis():
  # With plain momentum inside, the basis cannot matter: it is linear.
  grads = _grads((6, 6), steps=15)
  tx = optim.scale_by_soap(
    inner=optax.trace(0.9), precondition_frequency=2, first_step="use_current"
  )
  wanted = [np.asarray(u) for u in _run(optax.trace(0.9), grads)[0]]
  _close(_run(tx, grads)[0], wanted, 1e-5)


def test_types_of_storage_are_those_asked_for():
  grads = _grads((6, 6), steps=12)
  storage = optim.Storage(
    mu="bfloat16", nu="float16", factor="float16", basis="bfloat16"
  )
  tx = optim.scale_by_soap(precondition_frequency=2, storage=storage)
  stored, state = _run(tx, grads)
  bucket = state.kronecker["6x6_01"]
  assert state.inner.mu.stacks["6x6_01"].dtype == jnp.bfloat16
  assert state.inner.nu.stacks["6x6_01"].dtype == jnp.float16
  assert {f.dtype for f in bucket.factors} == {jnp.dtype("float16")}
  assert {q.dtype for q in bucket.derived} == {jnp.dtype("bfloat16")}
  exact, _ = _run(optim.scale_by_soap(precondition_frequency=2), grads)
  gap = np.linalg.norm(np.asarray(stored) - np.asarray(exact))
  assert 0 < gap < 0.3 * np.linalg.norm(exact)


def test_precision_is_that_of_each_kind_of_product():
  grads = jnp.zeros((6, 4))

  def products(*precision):
    tx = optim.scale_by_soap(precision=precision)
    text = jax.jit(tx.update).lower(grads, tx.init(grads)).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    return [sum(f"[{p}" in d for d in dots) for p in ("HIGHEST", "HIGH,")]

  # Two Gram matrices; two products in and two back; at each side's refresh
  # P Q, diag(Q^T P Q), the momentum out and in again, and the overlap of the
  # bases, by which the second moment is multiplied.
  assert products("highest", "high", "default") == [2, 4]
  assert products("default", "highest", "high") == [4, 12]
