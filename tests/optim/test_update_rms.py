"""The root mean square of updates: per matrix, whatever the direction."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

_DIMS = dict(stack=optim.DimensionNumbers(sides=(0, 2), stack=1), b=None)


def _rms(x, axes):
  return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=axes))


@pytest.mark.parametrize(
  ("options", "wanted"),
  [
    (dict(update_rms=0.2), [0.2, 0.2, 0.0]),
    (dict(max_update_rms=2.0), [2.0, 0.5, 0.0]),
    (dict(update_rms=0.2, max_update_rms=0.1), [0.1, 0.1, 0.0]),
  ],
)
def test_each_matrix_has_its_own_size(options, wanted):
  x = np.random.default_rng(0).normal(size=(5, 3, 7))
  x *= (np.array([3.0, 0.5, 0.0]) / _rms(x, (0, 2)))[None, :, None]
  grads = dict(stack=jnp.asarray(x, jnp.float32), b=jnp.ones(3))
  dims = {k: _DIMS[k] for k in grads}
  tx = optim.with_update_rms(
    optax.identity(), dimension_numbers=dims, **options
  )
  updates, _ = tx.update(grads, tx.init(grads))
  np.testing.assert_allclose(_rms(updates["stack"], (0, 2)), wanted, rtol=1e-5)
  np.testing.assert_array_equal(updates["b"], grads["b"])
  cosine = np.sum(updates["stack"][:, 0] * x[:, 0])
  cosine /= np.linalg.norm(updates["stack"][:, 0]) * np.linalg.norm(x[:, 0])
  np.testing.assert_allclose(cosine, 1, rtol=1e-6)


def test_sizes_must_be_positive():
  with pytest.raises(ValueError, match="update_rms=0 must be > 0"):
    optim.with_update_rms(optax.identity(), update_rms=0)
