"""The probe `microscaling`: against gradients and gains made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.transformer import Transformer
from lm.objectives import table as objectives
from lm.probes import microscaling, table
from lm.runs import metrics, plots, read
from lm.step import build
from lm.step.update import Context
from lm.train import loop

_WIDE = {"model__D": 64, "model__F": 128}


def _measured(tiny, change=lambda params: params, **changes):
  """(metrics, parts, params, rows) of the probe at the start of a run."""
  config = tiny.config(**_WIDE, **changes)
  config = build.resolve(config, build.find_data(config))
  parts = build.build(config, jax.devices()[:1])
  drawn = np.random.default_rng(0).integers(2, 256, parts.buffer_shape)
  with jax.set_mesh(parts.mesh):
    state = build.init_state(parts)
    state = state._replace(params=change(state.params))
    rows = build.put_buffer(parts, drawn.astype(np.int32))
    context = Context(state, rows, 1, parts=parts)
    measure = jax.jit(
      lambda state: microscaling.measure(
        context._replace(state=state), options=microscaling.Options()
      )
    )
    found = {k: float(v) for k, v in measure(state).items()}
  return found, parts, state.params, rows


def test_zeta_is_the_distance_of_the_gradients(tiny):
  found, parts, params, rows = _measured(tiny, product__recipe="mxfp4")
  objective = objectives.chosen(parts.config)
  plain = dataclasses.replace(
    parts.config.model, product="plain", product_kwargs=()
  )
  first = jax.tree.map(lambda x: x[0], rows)
  with jax.set_mesh(parts.mesh):
    low, exact = (
      jax.jit(jax.grad(lambda p, m=m: objective.loss_sums(m, p, first).loss))(
        params
      )
      for m in (parts.model, Transformer(plain))
    )
  a, b = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (low, exact)
  )
  wanted = np.linalg.norm(a - b) / np.linalg.norm(b)
  assert found["microscaling/zeta"] == pytest.approx(wanted, rel=1e-4)
  cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert found["microscaling/cosine"] == pytest.approx(cosine, rel=1e-4)
  assert found["microscaling/zeta/blocks"] > 0.05
  assert found["microscaling/weight_over"] == 0  # Scales are rounded up.


def test_without_slots_nothing_is_off(tiny):
  found, *_ = _measured(tiny)
  assert found["microscaling/zeta"] == 0
  assert found["microscaling/cosine"] == pytest.approx(1, rel=1e-6)
  assert "microscaling/weight_over" not in found


def test_clustered_gains_lie_in_the_last_code_of_ocp(tiny):
  """.97 is beyond 448 / 512: one code, all saturated; rounded up two codes."""

  def clustered(params):
    def leaf(path, x):
      if path[-1].key != "gain":
        return x
      noise = np.random.default_rng(x.size).normal(0, 0.005, x.shape)
      return jnp.asarray(0.97 + noise, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)

  found, *_ = _measured(tiny, clustered, product__recipe="paper_e4m3")
  assert found["microscaling/gain_last/floor"] == 1
  assert found["microscaling/gain_over/floor"] == 1
  assert found["microscaling/gain_codes/floor"] == 1
  assert found["microscaling/gain_last/ceil"] == 0
  assert found["microscaling/gain_codes/ceil"] <= 2
  assert 0 < found["microscaling/weight_over"] < 0.1


def test_a_run_logs_and_draws_it(tiny, tmp_path):
  config = tiny.config(
    **_WIDE, product__recipe="nvfp4", log__probes={"microscaling": {"every": 3}}
  )
  assert loop.train(config, tmp_path / "run") == 0
  columns = metrics.read(tmp_path / "run")
  assert columns["microscaling/zeta"].steps.tolist() == [3, 6]
  assert np.all(columns["microscaling/zeta"].values > 0)
  files = plots.draw(read.load_runs([tmp_path / "run"]), tmp_path / "out")
  assert "microscaling.png" in [file.name for file in files]


def test_bad_keys(tiny):
  config = tiny.config()
  log = dataclasses.replace(
    config.log, probes=(("microscaling", (("grid", "fp9"),)),)
  )
  (problem,) = table.problems(dataclasses.replace(config, log=log))
  assert "'fp9'" in problem
  assert "fp8_e4m3" in problem
