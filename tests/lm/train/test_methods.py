"""A method of training is one entry of a dictionary."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import load
from lm.runs import checkpoint, metrics, weights, workdir
from lm.step import build, methods
from lm.train import loop
from optim.common import evaluation


class _SlowState(NamedTuple):
  """Every other update moves; the point to evaluate is the start."""

  count: jax.Array
  begin: Any


def _make(config, model, specs, placement, quantizers):
  rate = config.optim.learning_rate

  def init(params):
    return _SlowState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates, opt_state, params=None, **extra_args):
    now = (opt_state.count % 2).astype(jnp.float32)
    moved = jax.tree.map(lambda g: -rate * now * g, updates)
    return moved, opt_state._replace(count=opt_state.count + 1)

  return optax.GradientTransformationExtraArgs(init, update)


_TOY = methods.Method(
  problems=lambda config: [
    "config.optim.kwargs is not for toy."
  ] if config.optim.kwargs else [],
  make=_make,
  make_update=methods.plain_update,
  metrics=lambda opt_state: {"toy/count": opt_state.inner.count},
  updates_per_step=lambda config: 2,
  has_updated=lambda opt_state: opt_state.count % 2 == 0,
)  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
  """The entry, and the reader of its state's point."""
  monkeypatch.setitem(methods.METHODS, "toy", _TOY)
  read = lambda state, name: None if name else (lambda p: state.begin)  # noqa: E731
  reader = evaluation.Reader(lambda state: (), read, lambda state: state.begin)
  monkeypatch.setitem(evaluation._READERS, _SlowState, reader)


def test_a_toy_method_trains_averages_resumes_and_is_evaluated(
  toy, tiny, tmp_path
):
  config = tiny.config(
    mesh__data=8, optim__name="toy", optim__kwargs={}, checkpoint__every=1,
    checkpoint__keep=6, optim__averages=("tail:1",),
  )  # fmt: skip
  assert build.problems(config) == []
  assert loop.train(config, tmp_path) == 0
  assert metrics.read(tmp_path)["toy/count"].values.tolist() == [*range(1, 7)]
  parts = build.build(workdir.read_config(tmp_path))
  begin = build.init_state(parts).params
  own = weights.restore(parts, tmp_path)
  restored = [checkpoint.restore(tmp_path, i, parts) for i in (2, 4, 6)]
  walked = [state.params for state in restored]
  average = weights.restore(parts, tmp_path, average="tail:1")
  for x, a, w, *steps in zip(
    *map(jax.tree.leaves, (begin, own, average, *walked)), strict=True
  ):
    np.testing.assert_array_equal(x, a)
    wanted = np.mean([np.asarray(s, np.float64) for s in steps], 0)
    np.testing.assert_allclose(w, wanted, rtol=1e-5, atol=1e-7)


def test_its_problems_are_listed_with_the_rest(toy, tiny):
  c = tiny.config_dict(optim__name="toy", model__G=3)
  with pytest.raises(ValueError, match="not for toy") as error:
    load.from_config_dict(c, build.problems)
  assert "config.model.G=3" in str(error.value)


def test_quant_chooses_lotion_unless_a_name_does(tiny):
  of = lambda **changes: methods.of(tiny.config(**changes))  # noqa: E731
  known = methods.METHODS
  assert of() is known["optax"]
  assert of(quant__method="qat") is known["optax"]
  assert of(quant__method="lotion") is known["lotion"]
  assert of(optim__name="gauss_newton") is known["gauss_newton"]
