"""Sweeps of diagonal preconditioners, for the notebooks beside this file."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import optim

# Fewer steps and rates, for the notebooks' test.
SMALL = os.environ.get("NOTEBOOK_SIZE") == "small"
# Power and estimator.
RULES = {
  "Adam": (-0.5, "empirical_fisher"),
  "GN^-1/2": (-0.5, "ggn"),
  "GN^-1": (-1.0, "ggn"),
}
COLOURS = {name: f"C{k}" for k, name in enumerate(RULES)}
MARKS = dict(zip(RULES, "os^", strict=True))


class Problem(NamedTuple):
  """A loss, its data, and where the descent starts.

  Attributes:
    model_fn: (params, batch) -> outputs.
    loss_fn: (outputs, batch) -> scalar.
    params: The start.
    distance: Unit of the length of the first step.
    data: Batches of the gradient and of the curvature, the axis T first.
    test: The batch of the reported losses and of the length of the first step.
  """

  model_fn: Callable
  loss_fn: Callable
  params: Any
  distance: float
  data: tuple[Any, Any]
  test: Any


@functools.cache
def runner(model_fn, loss_fn, kind, estimator, period, decay):
  """One compiled sweep over lanes (length of the first step, damping).

  Args:
    model_fn: (params, batch) -> outputs.
    loss_fn: (outputs, batch) -> scalar.
    kind: Basis: "identity", "eigen", "kronecker", or "supplied".
    estimator: As of `optim.scale_by_diagonal_preconditioner`.
    period: Steps between two refreshes of the basis.
    decay: Decay of the average of the curvature.

  Returns:
    run(lanes, power, basis, params, first, distance, schedule, data, test). The
    learning rate of a lane gives the first step from `first` the lane's length
    times `distance`. run returns, for each lane, the losses after 0, ..., T
    steps from `params`, and the learning rate.
  """
  source = {"eigen": "ggn", "kronecker": "empirical_fisher"}.get(kind)

  @jax.jit
  def run(lanes, power, basis, params, first, distance, schedule, data, test):
    def one(lane):
      length, damping = lane
      tx = optim.scale_by_diagonal_preconditioner(
        power, basis if kind == "supplied" else kind, estimator,
        model_fn=model_fn, loss_fn=loss_fn, decay=decay, eps=1e-12,
        damping=damping, basis_estimator=source, basis_update_period=period,
        basis_decay=0.9 if source else None,
      )  # fmt: skip

      def loss(p, batch):
        return loss_fn(model_fn(p, batch), batch)

      def update(p, state, batch, curvature):
        grads = jax.grad(loss)(p, batch)
        return tx.update(grads, state, p, curvature_batch=curvature)

      def step(carry, hyper):
        p, state = carry
        factor, batch, curvature = hyper
        u, state = update(p, state, batch, curvature)
        eta = factor * rate
        p = jax.tree.map(lambda w, d: w - (eta * d).astype(w.dtype), p, u)
        return (p, state), loss(p, test)

      u, _ = update(first, tx.init(first), test, test)
      rate = length * distance / jnp.linalg.norm(ravel_pytree(u)[0])
      carry = params, tx.init(params)
      _, losses = jax.lax.scan(step, carry, (schedule, *data))
      return jnp.append(loss(params, test), losses), rate

    # A refresh now and then costs nothing in a loop, each time under vmap.
    if period > 1:
      return jax.lax.map(one, lanes)
    return jax.vmap(one)(lanes)

  return run


def best(rule, kind, problem, schedules, lengths, dampings=(0.0,), **options):
  """The best run of a grid.

  Args:
    rule: A key of RULES.
    kind: Basis, see `runner`.
    problem: What is descended.
    schedules: {name: [T] factors of the learning rate}.
    lengths: Lengths of the first step over `problem.distance`.
    dampings: Tried for the Gauss-Newton rules; Adam has none.
    **options: `period` and `decay` of `runner`; `basis`, the supplied one.

  Returns:
    (last loss, [T + 1] losses, length, name of the schedule, learning rate).
  """
  power, estimator = RULES[rule]
  basis = options.pop("basis", jnp.zeros(()))
  run = runner(
    problem.model_fn, problem.loss_fn, kind, estimator,
    options.get("period", 1), options.get("decay", 0.0),
  )  # fmt: skip
  dampings = dampings if estimator == "ggn" else (0.0,)
  lanes = np.array([(c, d) for c in lengths for d in dampings])
  ends = []
  for name, schedule in schedules.items():
    losses, rates = run(
      tuple(lanes.T), power, basis, problem.params, problem.params,
      problem.distance, schedule, problem.data, problem.test,
    )  # fmt: skip
    losses = np.asarray(losses)
    i = tuned(losses)
    ends.append((losses[i, -1], losses[i], lanes[i][0], name, float(rates[i])))
  return min(ends, key=lambda item: item[0])


def tuned(losses):
  """Index of the lowest end among the runs that never went up tenfold."""
  tame = np.all(losses <= 10 * losses[:, :1], axis=1)  # False for nan.
  return int(np.argmin(np.where(tame, losses[:, -1], np.inf)))


def repeat(steps, tree):
  """The same batch at every step."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), tree)


def schedules_of(steps):
  """Three schedules of `steps` factors in [0, 1], by name."""
  t = np.arange(steps)
  return {
    "constant": jnp.ones(steps),
    "linear": jnp.asarray(1 - t / steps),
    "exponential": jnp.asarray(10.0 ** (-14 * t / steps)),
  }


def block_problem(sizes, steps):
  """E1: H is block diagonal with blocks of ones of the given sizes."""
  index = np.repeat(np.arange(len(sizes)), sizes)
  start = np.random.default_rng(1).normal(size=len(sizes))[index]

  def model_fn(w, batch):
    return jax.ops.segment_sum(w, index, len(sizes))

  def loss_fn(z, batch):
    return jnp.sum(z**2) / 2

  return Problem(
    model_fn,
    loss_fn,
    jnp.asarray(start),
    np.linalg.norm(start),
    data=(jnp.zeros(steps), jnp.zeros(steps)),  # The loss needs none.
    test=jnp.zeros(()),
  )


def curve(axis, losses, rule, style="-", floor=1e-30, every=10, label=None):
  """Draws losses against steps in the colour and with the mark of a rule."""
  t = np.arange(len(losses))
  axis.semilogy(
    t, np.maximum(losses, floor), style, color=COLOURS[rule],
    marker=MARKS[rule], markevery=every, markersize=4, label=label,
  )  # fmt: skip


def size_of(tree):
  """Euclidean length of a tree."""
  return float(jnp.linalg.norm(ravel_pytree(tree)[0]))


def print_table(rows):
  """Prints rows of (claim, reference, ours)."""
  for claim, given, ours in [("claim", "reference", "ours"), *rows]:
    print(f"{claim:<62}{given:<16}{ours}")
