"""The peers of `optimizer_step.py`, and the parameters they all step on.

The authors' SOAP update as a plain JAX loop over the leaves: momentum taken
out of and into the basis at each call, five two-sided products, the estimate
of the eigenvalues by two more full products, everything refreshed at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Width, layers, inner width, vocabulary.
SIZES = dict(S=(256, 4, 1024, 4096), M=(512, 8, 2048, 4096))
RATE, BETA = 3e-3, 0.95
MAX_PRECOND_DIM = 2048  # Both sides of all matrices but the vocabulary's.


def shapes(size):
  """Parameter shapes of a decoder with a tied embedding, layer by layer."""
  d, layers, f, v = SIZES[size]
  block = dict(q=(d, d), k=(d, d), v=(d, d), o=(d, d), w1=(d, f), w2=(f, d))
  block |= dict(gain1=(d,), gain2=(d,))
  return dict(embed=(v, d)) | {f"layer{i}": dict(block) for i in range(layers)}


def tree(size, seed):
  """Random arrays whose columns have a power-law covariance, as NumPy."""
  rng = np.random.default_rng(seed)

  def draw(shape):
    x = rng.standard_normal(shape, np.float32)
    if len(shape) < 2:
      return 1e-2 * x
    n = shape[1]
    mix = np.random.default_rng(n).standard_normal((n, n), np.float32)
    spectrum = (1 + np.arange(n, dtype=np.float32)) ** -0.5
    return 1e-2 * (x * spectrum) @ mix / np.sqrt(np.float32(n))

  return jax.tree.map(
    draw, shapes(size), is_leaf=lambda s: isinstance(s, tuple)
  )


def step_of(tx):
  """(params, state, grads) -> (params, state) of an optax transform."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def loop_init(params):
  """State of `loop_step`: a list over leaves."""

  def leaf_state(p):
    sides = [n if n <= MAX_PRECOND_DIM else 0 for n in p.shape]
    sides = sides if p.ndim == 2 else []
    return dict(
      m=jnp.zeros_like(p),
      v=jnp.zeros_like(p),
      gram=[jnp.zeros((n, n)) if n else None for n in sides],
      basis=[jnp.eye(n) if n else None for n in sides],
    )

  leaves = jax.tree.leaves(params)
  return jnp.zeros((), jnp.int32), [leaf_state(p) for p in leaves]


def loop_step(params, state, grads, frequency):
  """One call of the authors' optimiser on every leaf."""
  count, states = state
  leaves, treedef = jax.tree.flatten(params)
  new = [
    _loop_leaf(p, g, s, count, frequency)
    for p, g, s in zip(leaves, jax.tree.leaves(grads), states, strict=True)
  ]
  params = treedef.unflatten([p for p, _ in new])
  return params, (count + 1, [s for _, s in new])


def _turn(x, bases, into):
  for axis, q in enumerate(bases):
    if q is not None:
      x = jnp.moveaxis(
        jnp.tensordot(x, q, axes=(axis, 0 if into else 1)), -1, axis
      )
  return x


def _loop_leaf(p, g, s, count, frequency):
  bases, t = s["basis"], count.astype(jnp.float32)
  turned = _turn(g, bases, True)
  m = BETA * s["m"] + (1 - BETA) * turned
  v = BETA * s["v"] + (1 - BETA) * turned**2
  step = _turn(m / (jnp.sqrt(v) + 1e-8), bases, False)
  scale = jnp.sqrt(1 - BETA**t) / (1 - BETA**t)
  p = jnp.where(count == 0, p, p - RATE * scale * step)
  m, v = (jnp.where(count == 0, 0, x) for x in (m, v))
  gram = [
    old if old is None else BETA * old + (1 - BETA) * (g @ g.T, g.T @ g)[axis]
    for axis, old in enumerate(s["gram"])
  ]
  momentum = _turn(m, bases, False)

  def refreshed(bases, v):
    bases = list(bases)
    for axis, q in enumerate(bases):
      if q is not None:
        estimate = jnp.diag(q.T @ gram[axis] @ q)
        order = jnp.argsort(-estimate)
        v = jnp.take(v, order, axis=axis)
        bases[axis] = jnp.linalg.qr(gram[axis] @ q[:, order])[0]
    return bases, v

  def first(bases, v):
    return [
      q if q is None else jnp.linalg.eigh(gram[axis])[1][:, ::-1]
      for axis, q in enumerate(bases)
    ], v

  branch = jnp.where(count == 0, 2, (count % frequency == 0).astype(int))
  bases, v = jax.lax.switch(
    branch, [lambda b, v: (b, v), refreshed, first], bases, v
  )
  m = _turn(momentum, bases, True)
  return p, dict(m=m, v=v, gram=gram, basis=bases)
