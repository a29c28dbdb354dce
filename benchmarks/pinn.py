"""A physics-informed network in float64, by Adam, Muon, SOAP and Gauss-Newton.

    python -m benchmarks.pinn [--steps=2000] [--tune] [--seeds=1]

The Poisson equation -(u_xx + u_yy) = f on the unit square, u = 0 on its edge,
f such that u = sin(2 pi x) sin(pi y). A tanh network 2-32-32-32-1 minimises
half the mean square of the residual at 900 interior points plus 100 times that
of u at 120 points of the edge; all points at each step, so that the loss has no
noise. The table has the relative error ||u_network - u|| / ||u|| on a grid of
101 x 101 points, the loss, and the CPU seconds (of both
cores) without compilation.

The learning rates are the best of --tune (factors of about 3, seed 0; the rate
falls to 0 by a cosine). Gauss-Newton solves by 100 iterations of conjugate
gradients a step, so that 40 steps are 4,000 products with the matrix.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

SIZES, SIDE, EDGE_WEIGHT = (2, 32, 32, 32, 1), 30, 100.0
GN_STEPS, CG_ITERS = 40, 100

# {name: (rate -> transform, best rate)}
METHODS = {
  "Adam": (optax.adam, 3e-2),
  "Muon": (optim.muon, 3e-2),
  "SOAP, first_step skip": (
    functools.partial(optim.soap, first_step="skip", weight_decay=0.0),
    1e-2,
  ),
  "SOAP, first_step identity": (
    functools.partial(optim.soap, first_step="identity", weight_decay=0.0),
    3e-3,
  ),
}
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def init_params(key):
  """Glorot-normal kernels, zero biases."""
  keys = jax.random.split(key, len(SIZES) - 1)
  return [
    dict(
      kernel=jax.random.normal(k, (i, o)) * (2 / (i + o)) ** 0.5,
      bias=jnp.zeros(o),
    )
    for k, i, o in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
  ]


def network(params, x):
  """u, [points, 1], of points [points, 2]."""
  for layer in params[:-1]:
    x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
  return x @ params[-1]["kernel"] + params[-1]["bias"]


def solution(x):
  """The u wanted, [points, 1]."""
  return jnp.sin(2 * jnp.pi * x[:, :1]) * jnp.sin(jnp.pi * x[:, 1:])


def laplacian(u_fn, x):
  """u_xx + u_yy, [points, 1]."""

  def second(axis):
    e = jnp.broadcast_to(jnp.eye(2)[axis], x.shape)
    slope = lambda x: jax.jvp(u_fn, (x,), (e,))[1]  # noqa: E731
    return jax.jvp(slope, (x,), (e,))[1]

  return second(0) + second(1)


def residuals(params, points):
  """[points, 1]; half their mean square is the loss."""
  inner, edge = points["inner"], points["edge"]
  u_fn = functools.partial(network, params)
  equation = laplacian(u_fn, inner) + 5 * jnp.pi**2 * solution(inner)
  count = len(inner) + len(edge)
  return jnp.concatenate(
    [
      equation * (count / len(inner)) ** 0.5,
      u_fn(edge) * (EDGE_WEIGHT * count / len(edge)) ** 0.5,
    ]
  )


def make_points():
  """Cell centres of a grid, points of the four edges, and targets 0."""
  ticks = (np.arange(SIDE) + 0.5) / SIDE
  inner = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
  zeros, ones = np.zeros(SIDE), np.ones(SIDE)
  sides = [(ticks, zeros), (ticks, ones), (zeros, ticks), (ones, ticks)]
  edge = np.concatenate([np.stack(side, -1) for side in sides])
  targets = np.zeros((len(inner) + len(edge), 1))
  points = dict(inner=inner, edge=edge, targets=targets)
  return jax.tree.map(jnp.asarray, points)


def relative_error(params):
  """||u_network - u|| / ||u|| on a grid that training never saw."""
  ticks = jnp.linspace(0, 1, 101)
  x = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
  wrong = network(params, x) - solution(x)
  return float(jnp.linalg.norm(wrong) / jnp.linalg.norm(solution(x)))


loss_fn = optim.squared_error()


def train(tx, seed, steps, points, second_order=False):
  """(params, CPU seconds) after all steps as one compiled loop."""
  params = init_params(jax.random.key(seed))
  stacked = jax.tree.map(lambda x: x[None], points)

  def step(carry, _):
    params, state = carry
    if second_order:
      grads, data = None, dict(batches=stacked, ls_batches=stacked)
    else:
      loss = lambda p: loss_fn(residuals(p, points), points)  # noqa: E731
      grads, data = jax.grad(loss)(params), {}
    updates, state = tx.update(grads, state, params, **data)
    return (optax.apply_updates(params, updates), state), None

  loop = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
  compiled = loop.lower((params, tx.init(params))).compile()
  start = time.process_time()
  params, _ = jax.block_until_ready(compiled((params, tx.init(params))))
  return params, time.process_time() - start


def gauss_newton():
  """Levenberg's damping, a line search on the points themselves."""
  return optim.gauss_newton(
    residuals,
    loss_fn,
    optax.sgd(1.0),
    inner_steps=1,
    solver=optim.CG(CG_ITERS, tol=0.0),
    damping=optim.LevenbergMarquardt(0.1),
    line_search=optim.LineSearch(num=10),
    warm_start=0.95,
  )


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--tune", action="store_true")
  args = parser.parse_args()
  jax.config.update("jax_enable_x64", True)
  points = make_points()
  runs = []
  for name, (make, best) in METHODS.items():
    for rate in GRID if args.tune else (best,):
      tx = make(optax.cosine_decay_schedule(rate, args.steps))
      runs.append((f"{name} at {rate:g}", tx, args.steps, False))
  name = f"Gauss-Newton, CG({CG_ITERS}), {GN_STEPS} steps"
  runs.append((name, gauss_newton(), GN_STEPS, True))
  print("| method | relative error | loss | CPU seconds |\n|---|---|---|---|")
  for name, tx, steps, second_order in runs:
    rows = []
    for seed in range(args.seeds):
      params, seconds = train(tx, seed, steps, points, second_order)
      loss = float(loss_fn(residuals(params, points), points))
      rows.append((relative_error(params), loss, seconds))
    error, loss, seconds = np.median(rows, axis=0)
    print(f"| {name} | {error:.1e} | {loss:.1e} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
  main()
