"""A model small enough to compile in a second, and rows with documents."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import load
from lm.model import params as param_table
from ml_collections_configs import base

TINY = dict(
  D=16, N=2, H=4, G=4, F=24, V=32, real_V=29, L=12, eos_id=1, pad_id=0
)  # fmt: skip


@pytest.fixture(scope="session")
def make_config():
  """Tiny unrolled float32 model; keywords are fields of `ModelConfig`."""
  default = load.from_config_dict(base.get_config()).model
  tiny = TINY | dict(layers="unroll", compute_dtype="float32")
  return lambda **changes: dataclasses.replace(default, **(tiny | changes))


@pytest.fixture(scope="session")
def make_params():
  """Initial parameters, moved off ones and zeros so that no term is idle."""

  def make(cfg):
    unrolled = dataclasses.replace(cfg, layers="unroll")
    params = param_table.init_params(unrolled, jax.random.key(3))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    leaves = [
      x + 0.3 * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(treedef, leaves)
    return param_table.to_layout(params, cfg.layers)

  return make


@pytest.fixture(scope="session")
def rows():
  """[2, 13]: two documents, one that opens at once; padding at one end."""
  rows = np.random.default_rng(0).integers(2, 29, size=(2, 13)).astype(np.int32)
  rows[0, 5] = rows[1, 0] = 1
  rows[1, 11:] = 0
  return rows
