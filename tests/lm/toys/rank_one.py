"""Toy weights: one matrix of rank one is trained, the model is frozen."""

import jax.numpy as jnp

from lm.model.param_spec import ParamSpec
from lm.weights.table import WEIGHTS, Weights


def extra_specs(config, specs):
  del config
  rows, columns = specs["embed"]["table"].shape
  gain = ParamSpec((columns,), ("gain",), "gain")  # Starts at one.
  bias = ParamSpec((rows,), ("gain",), "bias")  # Starts at zero.
  return {"toy": {"columns": gain, "rows": bias}}


def seen(config, specs, params, frozen, step, key, mode):
  del config, specs, step, key, mode
  more = jnp.outer(params["toy"]["rows"], params["toy"]["columns"])
  return frozen | {"embed": {"table": frozen["embed"]["table"] + more}}


WEIGHTS["rank_one"] = Weights(extra_specs, seen, frozen=True)
