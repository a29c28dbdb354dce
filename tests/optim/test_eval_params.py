"""Points to evaluate are found by the type of a state, in any wrapping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.common import evaluation

PARAMS = dict(a=np.asarray([1.0, -2.0]), b=np.asarray([[0.5]]))
NAMES = ("age:3", "tail:0.5")


def _params(dtype=jnp.float32):
  return {k: jnp.asarray(v, dtype) for k, v in PARAMS.items()}


def _walk(tx, steps=6, dtype=jnp.float32):
  """(state, params, [weights in NumPy after each update])."""
  tx = optax.with_extra_args_support(tx)
  params = _params(dtype)
  state, update, walked = tx.init(params), jax.jit(tx.update), []
  for step in range(steps):
    grads = {k: (step + 1) * jnp.ones_like(x) for k, x in params.items()}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    walked.append({k: np.asarray(x, np.float64) for k, x in params.items()})
  return state, params, walked


def _ema(walked, key, decay=0.9):
  shares = decay ** np.arange(len(walked) - 1.0, -1, -1)
  return sum(s * w[key] for s, w in zip(shares, walked)) / shares.sum()  # noqa: B905


def _age(walked, key, k=3.0):
  average = PARAMS[key]
  for n, w in enumerate(walked, start=1):
    keep = 2 ** (-k / n)
    average = keep * average + (1 - keep) * w[key]
  return average


def _tail(walked, key, share=0.5):
  return np.mean([w[key] for w in walked[-round(share * len(walked)) :]], 0)


def _averaged(inner=None, **options):
  options = dict(decay=0.9, names=NAMES, num_steps=6) | options
  return optim.average_weights(inner or optax.sgd(0.1), **options)


WRAPPED = dict(
  alone=_averaged(),
  chain=optax.chain(optax.clip(1e6), _averaged(), optax.identity()),
  nested=optax.chain(optax.chain(_averaged())),
  within_another=optim.average_weights(_averaged(), 0.5),
)


@pytest.mark.parametrize("how", WRAPPED)
def test_each_average_is_the_sum_that_its_name_says(how):
  state, params, walked = _walk(WRAPPED[how])
  wanted = {"ema:0.9": _ema, "age:3": _age, "tail:0.5": _tail}
  assert set(wanted) <= set(optim.eval_names(state))
  for name, oracle in wanted.items():
    point = optim.eval_params(state, params, name)
    for key in PARAMS:
      np.testing.assert_allclose(point[key], oracle(walked, key), rtol=1e-6)
  own = optim.eval_params(state, params)
  jax.tree.map(np.testing.assert_array_equal, own, params)


@pytest.mark.parametrize("share", [0.2, 0.34, 1.0])
def test_a_tail_is_the_last_share_of_the_run(share):
  tx = _averaged(decay=None, names=(f"tail:{share}",))
  for steps in (1, 4, 6):
    state, params, walked = _walk(tx, steps)
    kept = walked[6 - max(1, round(share * 6)) :]
    wanted = np.mean([w["a"] for w in kept], 0) if kept else params["a"]
    point = optim.eval_params(state, params, f"tail:{share}")
    np.testing.assert_allclose(point["a"], wanted, rtol=1e-6)


def test_masked_leaves_are_those_of_params():
  tx = optax.chain(
    optax.sgd(0.1),
    optax.masked(_averaged(optax.identity()), dict(a=True, b=False)),
  )
  state, params, walked = _walk(tx)
  point = optim.eval_params(state, params, "ema:0.9")
  np.testing.assert_allclose(point["a"], _ema(walked, "a"), rtol=1e-6)
  np.testing.assert_array_equal(point["b"], params["b"])


def test_parts_of_a_partition_give_their_own_leaves():
  tx = optax.partition(
    dict(x=_averaged(names=()), y=_averaged(names=(), decay=0.9)),
    dict(a="x", b="y"),
  )
  state, params, walked = _walk(tx)
  point = optim.eval_params(state, params, "ema:0.9")
  for key in PARAMS:
    np.testing.assert_allclose(point[key], _ema(walked, key), rtol=1e-6)


def test_injected_decays_are_found():
  tx = optax.inject_hyperparams(optim.average_weights, static_args=("inner",))(
    inner=optax.sgd(0.1), decay=0.9
  )
  state, params, walked = _walk(tx)
  assert optim.eval_names(state) == ("ema",)
  point = optim.eval_params(state, params, "ema")
  np.testing.assert_allclose(point["a"], _ema(walked, "a"), rtol=1e-6)


def test_between_the_updates_of_an_accumulating_optimiser():
  """The average stands still while gradients are gathered."""
  tx = optax.MultiSteps(_averaged(names=()), 3).gradient_transformation()
  for steps in (3, 4, 5):  # The second update comes with call 6.
    state, params, walked = _walk(tx, steps)
    point = optim.eval_params(state, params, "ema:0.9")
    np.testing.assert_allclose(point["a"], walked[2]["a"], rtol=1e-6)
  inner = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
  tx = _averaged(
    inner,
    names=("age:3",),
    has_updated=lambda s: (s.mini_step == 0) & (s.gradient_step > 0),
  )
  made = {}
  for steps in (2, 3, 4, 5):
    state, params, walked = _walk(tx, steps)
    done = walked[2:3] if steps >= 3 else []
    made[steps] = optim.eval_params(state, params, "age:3")["a"]
    np.testing.assert_allclose(made[steps], _age(done, "a"), rtol=1e-6)
    point = optim.eval_params(state, params, "ema:0.9")["a"]
    wanted = walked[2]["a"] if steps >= 3 else params["a"]
    np.testing.assert_allclose(point, wanted, rtol=1e-6)


def test_dtypes_are_those_of_params():
  state, params, walked = _walk(_averaged(), dtype=jnp.bfloat16)
  for name in optim.eval_names(state):
    point = optim.eval_params(state, params, name)
    assert point["a"].dtype == jnp.bfloat16
  sums = jax.tree.leaves(state.averages)
  assert {x.dtype for x in sums} == {jnp.dtype("float32")}
  point = optim.eval_params(state, params, "ema:0.9")
  np.testing.assert_allclose(
    np.asarray(point["a"], np.float64), _ema(walked, "a"), rtol=1e-2
  )


def test_reading_traces_and_does_not_compile_again():
  state, params, _ = _walk(_averaged())
  read = jax.jit(lambda s, p: optim.eval_params(s, p, "age:3"))
  point = read(state, params)
  wanted = optim.eval_params(state, params, "age:3")
  np.testing.assert_allclose(point["a"], wanted["a"], rtol=1e-6)


class _Point(NamedTuple):
  """State of a method that wants 2 * z evaluated."""

  z: Any


def _method_with_a_point():
  def update_fn(updates, state, params=None):
    del params
    return updates, _Point(jax.tree.map(jnp.add, state.z, updates))

  return optax.GradientTransformation(_Point, update_fn)


evaluation.register(
  _Point,
  evaluation.Reader(
    names=lambda state: (),
    read=lambda state, name: (
      (lambda params: jax.tree.map(lambda z: 2 * z, state.z))
      if name is None
      else None
    ),
    tree=lambda state: state.z,
  ),
)


def test_a_methods_own_point_needs_no_name():
  tx = optax.chain(
    optax.masked(_method_with_a_point(), dict(a=True, b=False)),
    _averaged(optax.sgd(0.1), names=()),
  )
  state, params, walked = _walk(tx, 3)
  point = optim.eval_params(state, params)
  np.testing.assert_allclose(point["a"], 2 * (PARAMS["a"] + 6), rtol=1e-6)
  np.testing.assert_array_equal(point["b"], params["b"])
  average = optim.eval_params(state, params, "ema:0.9")
  np.testing.assert_allclose(average["a"], _ema(walked, "a"), rtol=1e-6)


def test_a_state_without_points_is_evaluated_at_params():
  state, params, _ = _walk(optim.soap(1e-2))
  assert optim.eval_names(state) == ()
  point = optim.eval_params(state, params)
  jax.tree.map(np.testing.assert_array_equal, point, params)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (dict(decay=None, names=()), "keep no average"),
    (dict(names=("ema:1",)), "'ema:1'.*in \\[0, 1\\)"),
    (dict(names=("age:0",)), "'age:0'.*k > 0"),
    (dict(names=("tail:1.5",)), "'tail:1.5'.*in \\(0, 1\\]"),
    (dict(names=("mean",)), "'mean'.*'ema:0.99'"),
    (dict(names=("tail:0.5",), num_steps=None), "num_steps=None.*'tail:0.5'"),
    (dict(names=("age:2", "age:2")), "'age:2' twice"),
    (dict(decay=0.9, names=("ema:0.9",)), "'ema:0.9' twice"),
    (dict(names=("tail:0.5",), num_steps=0), "num_steps=0"),
  ],
)
def test_bad_names_are_refused_at_construction(options, words):
  with pytest.raises(ValueError, match=words):
    _averaged(**options)


def test_unknown_and_doubled_points_are_refused():
  state, params, _ = _walk(_averaged())
  with pytest.raises(ValueError, match="name='ema:0.5'.*'ema:0.9', 'tail:0.5'"):
    optim.eval_params(state, params, "ema:0.5")
  with pytest.raises(ValueError, match="no average at all"):
    optim.eval_params(optax.EmptyState(), params, "ema:0.5")
  twice = _walk(optax.chain(_averaged(), _averaged(optax.identity())))
  with pytest.raises(ValueError, match="two points for leaf \\['a'\\]"):
    optim.eval_params(*twice[:2], "ema:0.9")
  with pytest.raises(ValueError, match="no leaf \\['a'\\]"):
    optim.eval_params(state, dict(c=params["a"]), "ema:0.9")
  with pytest.raises(ValueError, match="name=None must be one of"):
    optim.averaged_params(state, params)
