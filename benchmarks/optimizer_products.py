"""What a method needs at least: its matrix products and its refreshes alone.

The floor of `optimizer_step.py`: no moments, no round-off, no leaves, no
update. Matrices lie in stacks already, and a call refreshes the share 1 / f of
each stack. The products are those of the package, at the shapes of the method.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import optim
from optim.matrices import factors, linalg
from optim.matrices.newton_schulz import newton_schulz

# Method -> (list of Newton-Schulz or None, whether it has a basis, whether the
# sides whiten each other).
_NEEDS = {
  "muon": ("keller", False, False),
  "normuon": ("quintic", False, False),
  "soap": (None, True, False),
  "kl_soap": (None, True, True),
  "kl_shampoo": (None, True, True),
  "soap_muon": ("record", True, False),
}


def floor(
  name: str, params: Any, frequency: int, **plan: Any
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
  """(init, step) like a peer's: the state is the stacks, updated in place."""
  ns_list, basis, whitens = _NEEDS[name]
  buckets = optim.make_plan(params, **plan).buckets

  def init(params):
    del params
    return {
      bucket.name: dict(
        x=jnp.ones((bucket.size, *bucket.shape)) / bucket.shape[0],
        p=[_eyes(bucket.size, n, f) for n, f in _sides(bucket)],
        q=[_eyes(bucket.size, n, f) for n, f in _sides(bucket)],
      )
      for bucket in buckets
    }

  def step(params, state, grads):
    del grads
    return params, {name: of_bucket(kept) for name, kept in state.items()}

  def of_bucket(kept):
    x, p, q = kept["x"], list(kept["p"]), list(kept["q"])
    if basis:
      seen = [x, x]
      if whitens:  # Of the second side the gradient has half the way behind it.
        seen = [
          factors.rotate(x, part, transpose=True, precision="highest")
          for part in ([None, q[1]], [q[0], None])
        ]
      into = "highest" if whitens else "high"
      x = factors.rotate(x, q, transpose=True, precision=into)
      x = factors.rotate(x, q, transpose=False, precision="high")
      for side, old in enumerate(p):
        p[side] = 0.95 * old + 0.05 * factors.gram(seen[side], side, "highest")
        q[side], x = _refresh(p[side], q[side], x, side, frequency)
    if ns_list is not None:
      x = newton_schulz(x, ns_list)
    return dict(x=x, p=p, q=q)

  return init, jax.jit(step, donate_argnums=(0, 1))


def _sides(bucket):
  return zip(bucket.shape, bucket.factored, strict=True)


def _eyes(size, n, factored):
  return jnp.broadcast_to(jnp.eye(n), (size, n, n)) if factored else None


def _refresh(p, q, x, side, frequency):
  """A share of the bases by a power step, and their momentum turned."""
  share = -(-p.shape[0] // frequency)
  old = q[:share]
  new, _ = linalg.power_step(p[:share], old)
  turned = factors.mode_product(
    x[:share], old, side, transpose=False, precision="highest"
  )
  turned = factors.mode_product(
    turned, new, side, transpose=True, precision="highest"
  )
  return q.at[:share].set(new), x.at[:share].set(turned)
