"""`config.train.objective`: an entry from outside, its keys, its refusals."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import load
from lm.config.errors import InputError
from lm.eval import sampler
from lm.methods import newton
from lm.model import attention
from lm.model.transformer import Transformer
from lm.objectives import table
from lm.objectives.view import row_keys
from lm.step import build
from lm.train import jobs


@dataclasses.dataclass(frozen=True)
class _Options:
  scale: float = 1.0


def _draws(model, params, tokens_BL1, keys_B, options):
  """A loss of the keys alone."""
  del model, params
  drawn_B = jax.vmap(jax.random.uniform)(keys_B) * options.scale
  ones_B = jnp.ones(len(tokens_BL1))
  return table.LossSums(drawn_B, 0 * drawn_B, ones_B, 0 * drawn_B)


_DRAWN = table.Objective(
  view=None,
  row_sums=_draws,
  count=lambda cfg, tokens_BL1, options: jnp.ones(len(tokens_BL1), jnp.int32),
  options=_Options,
)


@pytest.fixture
def drawn(monkeypatch):
  monkeypatch.setitem(table.OBJECTIVES, "drawn", _DRAWN)
  return {"train__objective": "drawn"}


def _parts(tiny, devices, **changes):
  config = tiny.config(mesh__data=devices, **changes)
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:devices])


@pytest.mark.parametrize(
  ("devices", "microbatch"), [(1, 0), (1, 2), (8, 0), (2, 4)]
)
def test_draws_are_those_of_the_rows_however_they_are_split(
  tiny, drawn, devices, microbatch
):
  parts = _parts(
    tiny,
    devices,
    train__microbatch_size=microbatch,
    train__objective_kwargs={"scale": 3.0},
    optim__name="sgd",
    optim__kwargs={},
    **drawn,
  )
  index = 40 + np.arange(8)
  keys = row_keys(parts.config.seed, table.TRAINING, jnp.asarray(index))
  wanted = 3 * np.mean([jax.random.uniform(key) for key in keys])
  shape = parts.buffer_shape
  with jax.set_mesh(parts.mesh):
    update, now = build.compile_step(parts), build.init_state(parts)
    rows = np.ones(shape, np.int32)
    buffer = build.put_buffer(parts, rows, index.reshape(shape[:2]))
    _, metrics = update(now, buffer, np.int32(shape[0]))
  np.testing.assert_allclose(metrics["train/loss"], wanted, rtol=1e-6)


def test_names_and_keys_are_checked(tiny, drawn):
  def problems(**changes):
    return table.problems(tiny.config(**changes))

  assert problems() == []
  assert problems(**drawn) == []
  (line,) = problems(train__objective="next_tokn")
  assert "config.train.objective='next_tokn'" in line
  assert "Did you mean 'next_token'?" in line
  (line,) = problems(**drawn, train__objective_kwargs={"scael": 1.0})
  assert "objective_kwargs.scael" in line
  assert "Did you mean 'scale'?" in line
  (line,) = problems(**drawn, train__objective_kwargs={"scale": "1"})
  assert "is str, expected float" in line
  (line,) = problems(train__objective_kwargs={"scale": 1.0})
  assert "There are none." in line


def test_a_stored_configuration_keeps_the_keys(tiny, drawn):
  config = tiny.config(
    **drawn,
    train__objective_kwargs={"scale": 2.0},
    log__probes={"noise_scale": {"every": 3}},
  )
  assert config.train.objective_kwargs == (("scale", 2.0),)
  assert config.log.probes == (("noise_scale", (("every", 3),)),)
  assert load.from_dict(load.to_dict(config)) == config
  assert hash(config.log) == hash(load.from_dict(load.to_dict(config)).log)


def test_without_a_view_gauss_newton_refuses(tiny, drawn):
  (line,) = newton.problems(
    tiny.config(
      optim__name="gauss_newton",
      optim__kwargs={},
      schedule__name="constant",
      data__batch_size=20,
      train__microbatch_size=1,
      gauss_newton__inner_steps=16,
      **drawn,
    )
  )
  assert "'drawn' has no view" in line


def test_without_a_sampler_there_are_no_texts_but_a_line(tiny, drawn):
  config, lines = tiny.config(**drawn, log__samples=2), []
  parts = types.SimpleNamespace(config=config)
  session = types.SimpleNamespace(
    parts=parts, progress=types.SimpleNamespace(log=lines.append)
  )
  jobs.show_samples(session)
  assert lines == ["The objective 'drawn' has no way to sample texts."]
  with pytest.raises(InputError, match="no way to sample"):
    sampler.sample_texts(
      parts, None, prompts=[""], num_tokens=1, key=jax.random.key(0)
    )


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("positions", ["rope_half", "alibi"])
def test_both_ways_a_token_sees_its_document(isolate, positions):
  from lm.config.schema import ModelConfig
  from lm.model import params as param_table
  from ml_collections_configs import base

  cfg = ModelConfig(
    **base.get_config().model.to_dict()
    | dict(D=16, N=1, H=2, G=2, F=16, V=32, real_V=29, L=10, eos_id=1)
    | dict(layers="unroll", compute_dtype="float32", positions=positions)
    | dict(isolate_documents=isolate)
  )
  rows = np.random.default_rng(0).integers(2, 29, (2, 10)).astype(np.int32)
  rows[0, 4] = rows[0, 5] = rows[1, 0] = 1
  reach = attention.both_ways(jnp.asarray(rows), cfg)
  document = np.cumsum(rows == 1, axis=1)
  same = document[:, :, None] == document[:, None, :]
  if isolate:
    last = np.array([[max(np.flatnonzero(d)) for d in row] for row in same])
    np.testing.assert_array_equal(reach.last_BL, last)
  else:
    same[:] = True
  model = Transformer(cfg)
  params = param_table.init_params(cfg, jax.random.key(0))
  table_VD = params["embed"]["table"]

  def hidden(change_BLD):
    """Each position's row of the table is its own, moved by the change."""
    ids = np.arange(20).reshape(2, 10)
    own = table_VD[rows].reshape(20, -1) + change_BLD.reshape(20, -1)
    moved = params | {"embed": {"table": jnp.pad(own, ((0, 12), (0, 0)))}}
    return model.apply({"params": moved}, ids, reach, method="hidden")[0]

  slopes = jax.jacobian(hidden)(jnp.zeros((2, 10, cfg.D)))
  for b in range(2):
    seen = np.abs(slopes[b, :, :, b]).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(seen, same[b])
