"""A physics-informed network by Gauss-Newton, in float64 and plain JAX."""

import jax
import jax.numpy as jnp
import optax

import optim

jax.config.update("jax_enable_x64", True)
SIZES, STEPS = (2, 16, 16, 1), 30


def init_params(key):
  keys = jax.random.split(key, len(SIZES) - 1)
  return [
    (jax.random.normal(k, (i, o)) * i**-0.5, jnp.zeros(o))
    for k, i, o in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
  ]


def network(params, x):
  for w, b in params[:-1]:
    x = jnp.tanh(x @ w + b)
  return x @ params[-1][0] + params[-1][1]


def model_fn(params, batch):
  """Residuals of u_xx + u_yy + f = 0 inside and of u = 0 on the edge."""
  x, edge = batch["inside"], batch["edge"]
  u = lambda x: network(params, x)  # noqa: E731

  def second(axis):
    e = jnp.broadcast_to(jnp.eye(2)[axis], x.shape)
    return jax.jvp(lambda x: jax.jvp(u, (x,), (e,))[1], (x,), (e,))[1]

  equation = second(0) + second(1) + 2 * jnp.pi**2 * solution(x)
  return jnp.concatenate([equation, 10 * u(edge)])  # [points, 1].


def solution(x):
  return jnp.prod(jnp.sin(jnp.pi * x), axis=-1, keepdims=True)


t = (jnp.arange(12) + 0.5) / 12
inside = jnp.stack(jnp.meshgrid(t, t), -1).reshape(-1, 2)
lines = [jnp.stack([t, jnp.full_like(t, c)], -1) for c in (0, 1)]
edge = jnp.concatenate([*lines, *(line[:, ::-1] for line in lines)])
batch = dict(inside=inside, edge=edge)
batch["targets"] = jnp.zeros((len(inside) + len(edge), 1))
batches = jax.tree.map(lambda x: x[None], batch)  # One batch: all points.

tx = optim.gauss_newton(
  model_fn,
  optim.squared_error(),
  optax.sgd(1.0),
  inner_steps=1,
  solver=optim.CG(iters=100, tol=0.0),
  damping=optim.LevenbergMarquardt(0.1),
  line_search=optim.LineSearch(num=8),
  warm_start=0.95,
)
params = init_params(jax.random.key(0))
state, update = tx.init(params), jax.jit(tx.update)
for _ in range(STEPS):
  updates, state = update(
    None, state, params, batches=batches, ls_batches=batches
  )
  params = optax.apply_updates(params, updates)

x = jax.random.uniform(jax.random.key(1), (2000, 2))
wrong = network(params, x) - solution(x)
error = jnp.linalg.norm(wrong) / jnp.linalg.norm(solution(x))
print(f"relative error after {STEPS} steps: {error:.1e}")
assert error < 1e-2
