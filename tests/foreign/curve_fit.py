"""A curve fitted by Gauss-Newton and by SciPy's Levenberg-Marquardt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import optim

jax.config.update("jax_enable_x64", True)


def curve(params, t):
  """A damped oscillation on a slope."""
  amplitude, rate, frequency, phase, offset, slope = params
  wave = amplitude * jnp.exp(-rate * t) * jnp.cos(frequency * t + phase)
  return wave + offset + slope * t


rng = np.random.default_rng(0)
t = np.linspace(0, 10, 80)
truth = jnp.array([2.0, 0.3, 2.5, 0.4, 1.0, -0.1])
y = np.asarray(curve(truth, t)) + 0.05 * rng.standard_normal(80)
start = np.array([1.0, 0.1, 2.3, 0.0, 0.0, 0.0])

tx = optim.gauss_newton(
  lambda params, batch: curve(params, batch["t"])[:, None],  # [points, 1].
  optim.squared_error(),
  optax.sgd(1.0),
  inner_steps=1,
  solver=optim.CG(iters=12, tol=0.0),
  damping=optim.LevenbergMarquardt(1e-2, up=4.0, down=0.25, minimum=1e-12),
  line_search=optim.LineSearch(num=10, include_zero=True),
  warm_start=0.0,
)
batches = dict(t=jnp.array(t)[None], targets=jnp.array(y)[None, :, None])
params = jnp.array(start)
state, update = tx.init(params), jax.jit(tx.update)
steps = 0
while steps < 30:
  updates, state = update(
    None, state, params, batches=batches, ls_batches=batches
  )
  params = optax.apply_updates(params, updates)
  steps += 1
  if jnp.linalg.norm(updates) < 1e-7:
    break

peer = scipy.optimize.least_squares(
  lambda params: np.asarray(curve(params, t)) - y,
  start,
  jax.jacobian(lambda params: curve(params, t)),
  method="lm",
  xtol=1e-12,
  ftol=1e-12,
)
print("Gauss-Newton:", np.round(params, 4), "after", steps, "steps")
print("SciPy:       ", np.round(peer.x, 4), "after", peer.nfev, "steps")
print("largest difference:", np.abs(params - peer.x).max())
assert steps < 20
np.testing.assert_allclose(params, peer.x, rtol=1e-6, atol=1e-7)
