"""What `gauss_newton_step.py` compares: each side makes one call.

The network is `lm`'s own transformer, layers unrolled. "study" sides are
written from the description of the study's code: a linearisation and its
transpose, an iterate of its own, and an outer loop driven from Python with one
call for each inner step and for each candidate on each batch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim
from benchmarks import train_step

SIZES = train_step.SIZES | {"T": dict(D=64, H=4, N=2, F=256, V=512, L=64, B=4)}
INNER_STEPS, RATE, RATIO, CANDIDATES = 8, 1e-3, 2**-0.5, 5


class Problem:
  """Model, loss, parameters, a displacement and tokens of one size."""

  def __init__(self, name, remat="none", chunks=8):
    """Everything follows from the size."""
    from lm.model import params as param_table
    from lm.model.transformer import Transformer

    size = SIZES[name]
    cfg = dataclasses.replace(train_step.config_of(size).model, remat=remat)
    self.model, self.size = Transformer(cfg), size
    self.params = param_table.init_params(cfg, jax.random.key(0))
    self.delta = jax.tree.map(lambda x: 0.01 * jnp.cos(x), self.params)
    rng = np.random.default_rng(0)
    shape = (INNER_STEPS, size["B"], size["L"] + 1)
    self.tokens = jnp.asarray(rng.integers(2, size["V"], shape), jnp.int32)
    self.loss = optim.softmax_cross_entropy(lambda t: (t[:, 1:], t[:, 1:] != 0))
    self.head = "embed" if cfg.tied else "head"
    self.chunked = optim.chunked_lm_head(
      self.hidden, self.head, chunks, head_fn=self.logits
    )

  def whole(self, params, tokens):
    """All logits."""
    return self.model.apply({"params": params}, tokens[:, :-1])

  def hidden(self, params, tokens):
    """The body."""
    variables = {"params": params}
    return self.model.apply(variables, tokens[:, :-1], method="hidden")[0]

  def logits(self, part, hidden):
    """The head."""
    return self.model.apply(
      {"params": {self.head: part}}, hidden, method="logits"
    )

  def batch_loss(self, params, tokens):
    """The plain loss."""
    return self.loss(self.whole(params, tokens), tokens)


def inner_sides(p):
  """{name: (params, delta, tokens) -> tree}, each to be jitted."""

  def local(model, mode):
    return lambda params, delta, tokens: optim.local_value_and_grad(
      model, p.loss, params, delta, tokens, mode=mode
    )

  return {
    "gradient": lambda params, delta, tokens: jax.value_and_grad(p.batch_loss)(
      params, tokens
    ),
    "gradient, chunked": local(p.chunked, "nonlinear"),
    "quadratic": local(p.whole, "quadratic"),
    "quadratic, chunked": local(p.chunked, "quadratic"),
    "prox-linear, chunked": local(p.chunked, "prox_linear"),
    "study's": functools.partial(study_gradient, p),
    "vjp and jvp apart": functools.partial(_apart, p),
    "product": lambda params, delta, tokens: optim.ggn_vector_product(
      p.whole, p.loss, params, tokens, delta
    ),
    "product, by hand": functools.partial(_product_by_hand, p),
    "search, one batch": lambda params, delta, tokens: optim.line_search_losses(
      p.chunked, p.loss, params, delta, tokens
    ),
  }


def study_gradient(p, params, delta, tokens):
  """linearize, tangents, the Hessian product of the loss, linear_transpose."""
  z, tangent = jax.linearize(lambda q: p.whole(q, tokens), params)
  u = tangent(delta)
  value, slope = jax.value_and_grad(p.loss)(z, tokens)
  curve = jax.jvp(jax.grad(lambda x: p.loss(x, tokens)), (z,), (u,))[1]
  back = jax.linear_transpose(tangent, params)
  return value, back(slope + curve)[0]


def _apart(p, params, delta, tokens):
  """A reverse pass and a forward one of its own."""
  f = lambda q: p.whole(q, tokens)  # noqa: E731
  z, back = jax.vjp(f, params)
  u = jax.jvp(f, (params,), (delta,))[1]
  slope, curve = jax.jvp(jax.grad(lambda x: p.loss(x, tokens)), (z,), (u,))
  return back(slope + curve)[0]


def _product_by_hand(p, params, delta, tokens):
  z, tangent = jax.linearize(lambda q: p.whole(q, tokens), params)
  curve = jax.jvp(
    jax.grad(lambda x: p.loss(x, tokens)), (z,), (tangent(delta),)
  )[1]
  return jax.linear_transpose(tangent, params)(curve)[0]


def inner_step(p, name):
  """(call, its compiled form) of one inner side."""
  side = inner_sides(p)[name]
  compiled = jax.jit(side).lower(p.params, p.delta, p.tokens[0]).compile()

  def call(count):
    batch = p.tokens[count % INNER_STEPS]
    jax.block_until_ready(compiled(p.params, p.delta, batch))

  return call, compiled


def outer_step(p, name):
  """(call, compiled form or None) of one outer side."""
  if name == "outer, study's":
    return _study_outer(p), None
  tx = optim.gauss_newton(
    p.chunked if "chunked" in name else p.whole,
    p.loss,
    optax.adam(1.0),
    inner_steps=INNER_STEPS,
    learning_rate=RATE,
    line_search=optim.LineSearch(
      num_batches=INNER_STEPS if "all data" in name else None
    ),
  )
  count = INNER_STEPS if "all data" in name else INNER_STEPS // 4

  def step(params, state, tokens):
    updates, state = tx.update(
      None, state, params, batches=tokens, ls_batches=tokens[:count]
    )
    return optax.apply_updates(params, updates), state

  carry = jax.tree.map(jnp.copy, (p.params, tx.init(p.params)))
  step = jax.jit(step, donate_argnums=(0, 1))
  compiled = step.lower(*carry, p.tokens).compile()

  def call(_):
    nonlocal carry
    carry = compiled(*carry, p.tokens)
    jax.block_until_ready(carry)

  return call, compiled


def _study_outer(p):
  """Python drives every inner step and every candidate on every batch."""
  tx = optax.adam(RATE)

  @jax.jit
  def inner(params, iterate, state, tokens):
    delta = jax.tree.map(jnp.subtract, iterate, params)
    _, grads = study_gradient(p, params, delta, tokens)
    updates, state = tx.update(grads, state, iterate)
    return optax.apply_updates(iterate, updates), state

  loss = jax.jit(p.batch_loss)
  params, iterate, state = p.params, p.params, tx.init(p.params)
  alphas = [RATIO**i for i in range(CANDIDATES)]

  def call(_):
    nonlocal params, iterate, state
    for i in range(INNER_STEPS):
      iterate, state = inner(params, iterate, state, p.tokens[i])
    delta = jax.tree.map(jnp.subtract, iterate, params)
    totals = []
    for alpha in alphas:
      moved = jax.tree.map(lambda w, d, a=alpha: w + a * d, params, delta)
      totals.append(sum(float(loss(moved, t)) for t in p.tokens))
    best = alphas[int(np.argmin(totals))]
    params = jax.tree.map(lambda w, d: w + best * d, params, delta)
    jax.block_until_ready(params)

  return call
