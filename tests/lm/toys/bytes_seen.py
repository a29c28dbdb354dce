"""A toy probe: the largest weight, and how many different bytes were read."""

import jax
import jax.numpy as jnp

from lm.probes.table import PROBES, Probe


def measure(context):
  largest = [jnp.max(jnp.abs(p)) for p in jax.tree.leaves(context.state.params)]
  ids = jnp.bincount(context.rows.tokens.reshape(-1), length=512)
  return {
    "toy/largest": jnp.max(jnp.stack(largest)),
    "toy/bytes": jnp.sum(ids > 0),
  }


PROBES["bytes_seen"] = Probe(None, ("state", "rows"), measure)
