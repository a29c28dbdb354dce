"""A Markov chain learnt in a few outer steps, beside Muon and the control.

The bars are those of the specification's toy (two layers of width 64, 8192
words a step, one seed): losses after 10 steps.
"""

import functools

import jax
import optax
import pytest
from oracles import markov

import optim

LOSS = optim.softmax_cross_entropy(markov.targets)
GROUPS = {"embed": "embed", "block {}": "blocks/*", "head": ["gain", "head"]}


def _muon(learning_rate):
  """Muon for the matrices of blocks, AdamW for the rest."""

  def numbers(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: (
        optim.DimensionNumbers()
        if path[0].key == "blocks" and x.ndim == 2
        else None
      ),
      params,
    )

  return optim.muon(
    learning_rate, dimension_numbers=numbers, adam_b2=0.999, adam_eps=1e-8
  )


@jax.jit
def _loss(params, rows):
  return LOSS(markov.logits(params, rows), rows)


def _gauss_newton(
  size, steps, inner_steps, rows, mode, scope="full", inner=_muon, rate=0.03
):
  """(loss after each outer step, alphas)."""
  chain = markov.Chain()
  held_out, params = chain.rows(128), markov.init(*size)
  tx = optim.gauss_newton(
    markov.logits, LOSS, inner(1.0), inner_steps=inner_steps, mode=mode,
    scope=scope, learning_rate=optim.inner_schedule(
      "constant_with_inner_cosine", rate, steps, inner_steps
    ),
  )  # fmt: skip
  state, update = tx.init(params), jax.jit(tx.update)
  losses, alphas = [], []
  for _ in range(steps):
    updates, state = update(
      None, state, params, batches=chain.rows(inner_steps, rows),
      ls_batches=chain.rows(max(1, inner_steps // 4), rows),
    )  # fmt: skip
    params = optax.apply_updates(params, updates)
    losses.append(float(_loss(params, held_out)))
    alphas.append(float(state.alpha))
  assert update._cache_size() <= 1  # 0: JAX kept no entry.
  return losses, alphas


def _baseline(size, steps, rows, horizon, optimizer=_muon, rate=0.03):
  chain = markov.Chain()
  held_out, params = chain.rows(128), markov.init(*size)
  tx = optimizer(
    optax.warmup_cosine_decay_schedule(0, rate, horizon // 10, horizon)
  )

  @jax.jit
  def step(params, state, rows):
    grads = jax.grad(lambda p: LOSS(markov.logits(p, rows), rows))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state, chain.rows(rows))
  return float(_loss(params, held_out))


def test_learns_faster_than_adam_with_the_same_words():
  # 2048 words an outer step, one layer of width 32.
  size, steps = (32, 1), 8
  losses, _ = _gauss_newton(
    size, steps, 16, 4, "quadratic", inner=optax.adam, rate=0.01
  )
  adam = _baseline(size, steps, 64, 2 * steps, optimizer=optax.adam, rate=0.01)
  assert losses[-1] < adam - 0.1
  assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_the_bars_of_the_specification():
  run = functools.partial(_gauss_newton, (64, 2), 10, 16, 16)
  full, alphas = run("quadratic")
  prox, _ = run("prox_linear")
  control, _ = run("nonlinear")
  layerwise, short = run(
    "quadratic", lambda params: optim.path_groups(params, GROUPS)
  )
  muon = _baseline((64, 2), 10, 256, 30)
  print(
    f"quadratic {full[-1]:.3f}, prox-linear {prox[-1]:.3f}, nonlinear "
    f"{control[-1]:.3f}, layerwise {layerwise[-1]:.3f}, Muon {muon:.3f}; "
    f"alphas {alphas}, layerwise {short}"
  )
  assert full[-1] < 3.2
  assert full[-1] < muon - 0.1
  assert prox[-1] == pytest.approx(full[-1], abs=0.02)
  assert layerwise[-1] < 3.2
  # Shorter for groups that overshoot, down to 1 / their number.
  assert min(short) == pytest.approx(0.25)
  assert min(alphas) > 0.3
