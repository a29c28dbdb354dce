"""Sophia-G in the trainer: where its estimate of the curvature comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from lm.config.errors import ConfigError
from lm.step import build
from lm.weights import rounded

_B2 = 0.9
_SOPHIA = {
  "optim__name": "sophia_g",
  "optim__kwargs": {"b2": _B2, "estimate_every": 2},
  "data__batch_size": 8,
  "train__microbatch_size": 4,
}


def _rows(step, shape):
  rows = np.random.default_rng(step).integers(2, 256, shape)
  return rows.astype(np.int32)


def test_the_estimate_is_of_drawn_labels_on_the_first_microbatch(tiny):
  config = tiny.config(**_SOPHIA)
  config = build.resolve(config, build.find_data(config))
  parts = build.build(config, jax.devices()[:1])
  shape = parts.buffer_shape
  with jax.set_mesh(parts.mesh):
    now, before, idle = build.init_state(parts), None, 1.0
    train_step = build.compile_step(parts)
    for step in range(3):
      before = jax.tree.map(np.asarray, now.params)
      buffer = build.put_buffer(parts, _rows(step, shape))
      now, metrics = train_step(now, buffer, np.int32(2))
      nu = optax.tree.get(now.opt_state, "nu")
      if step < 2:  # No estimate yet: every step is a sign.
        assert not any(np.any(x) for x in jax.tree.leaves(nu))
        idle = float(metrics["optim/unclipped"])  # Without any gradient.
    assert float(metrics["optim/unclipped"]) > idle
    tokens = jnp.asarray(_rows(2, shape)[0])
    wanted = optim.gauss_newton_bartlett_diagonal(
      lambda params, rows: parts.model.apply({"params": params}, rows[:, :-1]),
      jax.tree.map(jnp.asarray, before),
      tokens,
      rounded.key_of(config, jnp.int32(2), "labels"),
      weights=jnp.ones((len(tokens), tokens.shape[1] - 1)),
    )
  for h, x in zip(jax.tree.leaves(nu), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(h, (1 - _B2) * x, rtol=1e-3, atol=1e-9)


def test_lotion_is_refused(tiny):
  config = tiny.config(**_SOPHIA, quant__method="lotion")
  found = build.problems(config)
  assert any(
    "'lotion' is not for config.optim.name='sophia_g'" in x for x in found
  )


def test_a_role_of_another_optimiser_gets_no_estimate(tiny):
  changes = {"optim__by_role": {"hidden": {"name": "sophia_g", "kwargs": {}}}}
  config = tiny.config(**changes)
  config = build.resolve(config, build.find_data(config))
  with pytest.raises((ConfigError, ValueError), match="estimate=None"):
    build.build(config, jax.devices()[:1])
