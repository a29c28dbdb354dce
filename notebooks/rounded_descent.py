"""Descent to rounded weights, for the notebook on LOTION beside this file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

INT4 = optim.Quantizer(optim.INT4)
# Options of `train` and `train_layers`.
METHODS = {
  "PTQ": {},
  "QAT": dict(forward="nearest"),
  "QAT-s": dict(forward="nearest", scale_gradient=True),
  "RAT": dict(forward="random"),
  "RAT-s": dict(forward="random", scale_gradient=True),
  "LOTION, s fixed": dict(strength=1.0),
  "LOTION": dict(strength=1.0, scale_gradient=True),
}


def problem(size, seed, rotated=False):
  """A least-squares problem with eigenvalues i^-1.1.

  Args:
    size: Number of weights.
    seed: Seed of w*, of the order of the eigenvalues, and of the start.
    rotated: Whether H is a full matrix in a random basis, not a diagonal.

  Returns:
    h ([size], or [size, size] if rotated), wstar [size], start [size]; float32.
  """
  rng = np.random.default_rng(seed)
  wstar = rng.normal(size=size)
  h = np.arange(1.0, size + 1) ** -1.1
  if rotated:
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    h = (basis * h) @ basis.T
  else:
    h = rng.permutation(h)
  start = 1e-3 * rng.normal(size=size)
  return tuple(jnp.asarray(x, jnp.float32) for x in (h, wstar, start))


def risk(h, wstar, w):
  """(w - w*)^T H (w - w*) / 2; h is the diagonal of H, or H."""
  error = w - wstar
  return jnp.vdot(error, h * error if h.ndim == 1 else h @ error) / 2


@functools.partial(
  jax.jit,
  static_argnames=("quantizer", "steps", "forward", "scale_gradient"),
)
def train(
  h, wstar, start, rates, strength=0.0, *, quantizer, steps, forward=None,
  scale_gradient=False,
):  # fmt: skip
  """Gradient descent with averaged momentum and a cosine to zero.

  Args:
    h: Curvature, from `problem`.
    wstar: [size].
    start: [size].
    rates: [R] peak learning rates.
    strength: Weight of LOTION's penalty; 0 for none.
    quantizer: The grid and its scales.
    steps: Number of steps.
    forward: How weights are rounded before the gradient: None, "nearest" or
      "random". Gradients pass straight through.
    scale_gradient: Whether the scale is differentiated as well.

  Returns:
    [R, size] weights at the end, before they are rounded.
  """
  diagonal = h if h.ndim == 1 else jnp.diagonal(h)

  def loss(w, key):
    key = key if forward == "random" else None
    at = w
    if forward:
      at = optim.straight_through(
        w, quantizer, key=key, scale_gradient=scale_gradient
      )
    penalty = optim.rounding_penalty(
      w, diagonal, quantizer, scale_gradient=scale_gradient
    )
    return risk(h, wstar, at) + strength * penalty

  def run(rate):
    def step(carry, t):
      w, m = carry
      m = 0.9 * m + 0.1 * jax.grad(loss)(w, jax.random.key(t))
      return (w - rate * (1 + jnp.cos(jnp.pi * t / steps)) / 2 * m, m), None

    carry, _ = jax.lax.scan(step, (start, 0 * start), jnp.arange(steps))
    return carry[0]

  return jax.vmap(run)(jnp.asarray(rates))


@functools.partial(jax.jit, static_argnames="quantizer")
def score(h, wstar, w_R, quantizer):
  """Relative risks, rounded to nearest and at random, of R runs."""
  scale = risk(h, wstar, jnp.zeros_like(wstar))
  keys = jax.random.split(jax.random.key(7), 32)

  def one(w):
    near = risk(h, wstar, optim.round_nearest(w, quantizer))
    draw = lambda key: risk(h, wstar, optim.round_random(key, w, quantizer))  # noqa: E731
    return near / scale, jnp.mean(jax.lax.map(draw, keys)) / scale

  return jax.vmap(one)(w_R)


@functools.partial(
  jax.jit, static_argnames=("steps", "forward", "scale_gradient")
)
def train_layers(
  h, wstar, params, rates, strength=0.0, *, steps=3000, forward=None,
  scale_gradient=False,
):  # fmt: skip
  """Adam with a cosine to zero on v = a^T W; arguments as of `train`.

  `params` is dict(a=[k], W=[k, size]). The curvature is the Gauss-Newton
  diagonal in closed form and is not differentiated. Returns the params of every
  rate, along a new first axis.
  """

  def loss(params, key):
    at = params
    if forward:
      at = optim.quantize_params(
        params, INT4, key=key if forward == "random" else None,
        scale_gradient=scale_gradient,
      )  # fmt: skip
    curvature = dict(
      a=jnp.sum(params["W"] ** 2 * h, axis=1),
      W=params["a"][:, None] ** 2 * h,
    )
    penalty = optim.rounding_penalty(
      params, jax.lax.stop_gradient(curvature), INT4,
      scale_gradient=scale_gradient,
    )  # fmt: skip
    return risk(h, wstar, at["a"] @ at["W"]) + strength * penalty

  def run(rate):
    schedule = optax.cosine_decay_schedule(rate, steps)
    tx = optax.adam(schedule, 0.9, 0.99)

    def step(carry, t):
      params, state = carry
      grads = jax.grad(loss)(params, jax.random.key(t))
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    carry, _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return carry[0]

  return jax.lax.map(run, jnp.asarray(rates))


@jax.jit
def score_layers(h, wstar, params_R):
  """As `score`, for the params of `train_layers`."""
  scale = risk(h, wstar, jnp.zeros_like(wstar))
  keys = jax.random.split(jax.random.key(7), 32)

  def rounded(params, key=None):
    params = optim.quantize_params(params, INT4, key=key)
    return risk(h, wstar, params["a"] @ params["W"]) / scale

  def one(params):
    draws = jax.lax.map(functools.partial(rounded, params), keys)
    return rounded(params), jnp.mean(draws)

  return jax.vmap(one)(params_R)
