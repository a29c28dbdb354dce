"""Makes `kfac_products.npz` with kfac-jax 0.0.8, in an environment of its own.

    pip install kfac-jax==0.0.8 jax==0.8.2
    python tests/golden/make_kfac_products.py

Products of a vector with the Gauss-Newton matrix and the Hessian of a network's
mean loss, in float64, from registered losses: that version does not run on the
jax that the tests use.
"""

import pathlib

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np


def inputs():
  """Parameters p_NAME, a direction v_NAME, and a batch of seven."""
  rng = np.random.default_rng(0)
  shapes = dict(a=(4, 5), b=(5, 6), c=(6, 3), bias=(3,))
  found = {f"p_{k}": 0.7 * rng.normal(size=s) for k, s in shapes.items()}
  found |= {f"v_{k}": rng.normal(size=s) for k, s in shapes.items()}
  return found | dict(
    x=rng.normal(size=(7, 4)),
    labels=rng.integers(0, 3, 7),
    numbers=rng.normal(size=(7, 3)),
  )


def model(params, x):
  """Two hidden layers."""
  h = jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"])
  return h @ params["c"] + params["bias"]


def cross_entropy(params, batch):
  """Registers the loss; kfac-jax sums, and divides by the rows."""
  z = model(params, batch["x"])
  kfac_jax.register_softmax_cross_entropy_loss(z, batch["labels"])
  logs = jax.nn.log_softmax(z)
  return -jnp.mean(jnp.take_along_axis(logs, batch["labels"][:, None], 1))


def squares(params, batch):
  """Half the squared distance."""
  z = model(params, batch["x"])
  kfac_jax.register_squared_error_loss(z, batch["numbers"], weight=0.5)
  return jnp.mean(jnp.sum((z - batch["numbers"]) ** 2, 1)) / 2


def main():
  """Writes the file beside this one."""
  jax.config.update("jax_enable_x64", True)
  arrays = inputs()
  names = ("a", "b", "c", "bias")
  params = {k: jnp.asarray(arrays[f"p_{k}"]) for k in names}
  v = {k: jnp.asarray(arrays[f"v_{k}"]) for k in names}
  batch = {k: jnp.asarray(arrays[k]) for k in ("x", "labels", "numbers")}
  for loss in (cross_entropy, squares):
    curvature = kfac_jax.ImplicitExactCurvature(loss)
    ggn = curvature.multiply_ggn((params, batch), v)
    hessian = curvature.multiply_hessian((params, batch), v)
    for k in names:
      arrays[f"{loss.__name__}_ggn_{k}"] = np.asarray(ggn[k])
      arrays[f"{loss.__name__}_hessian_{k}"] = np.asarray(hessian[k])
  path = pathlib.Path(__file__).parent / "kfac_products.npz"
  np.savez_compressed(path, **arrays)


if __name__ == "__main__":
  main()
