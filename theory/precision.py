"""float64 on the host CPU in a scope, whatever the process trains in.

The closed forms need float64, which TPUs do not have. A public function that
is called on concrete values therefore opens a scope of its own and returns
NumPy float64. No global JAX flag changes. Under a caller's transformation
(`jax.grad`, `jax.vmap`, `jax.jit`) the caller sets the precision: open the same
scope with `theory.float64()`.
"""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from . import checks


@contextlib.contextmanager
def float64():
  """A scope in which JAX computes in float64 on the host CPU.

  Use it around transformations of this package's functions:

      with theory.float64():
        slope = jax.grad(lambda eta: theory.risk_at(p, eta, 4, 1e6).total)(0.1)

  or as a decorator, `@theory.float64()`. Outside the scope nothing changes,
  so a process that trains in float32 on an accelerator is not disturbed.

  Yields:
    Nothing.
  """
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.enable_x64(True), jax.default_device(cpu):
    yield


def on_host(*static: str):
  """Makes a pure function compute as the module docstring says.

  Args:
    *static: Names of the arguments that are not arrays. They are hashable.

  Returns:
    A decorator. Concrete arguments are checked by name (`checks.CHECKS`), cast
    to float64 and computed in the scope. If any argument is traced, the same
    jitted function becomes part of the caller's trace.
  """

  def decorate(fn):
    signature = inspect.signature(fn)
    jitted = jax.jit(fn, static_argnames=static)

    @functools.wraps(fn)
    def call(*args, **kwargs):
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      arrays = {k: v for k, v in bound.arguments.items() if k not in static}
      arrays = {k: _unlisted(v) for k, v in arrays.items()}
      options = {k: bound.arguments[k] for k in static}
      if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays)):
        return jitted(**arrays, **options)
      arrays = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
      checks.check(arrays)
      with float64():
        out = jitted(**arrays, **options)
      return jax.tree.map(lambda x: np.asarray(x)[()], out)

    return call

  return decorate


def _unlisted(x):
  """Lists of numbers become arrays, so that they have a shape."""
  if not isinstance(x, list):
    return x
  if any(isinstance(y, jax.core.Tracer) for y in jax.tree.leaves(x)):
    return jnp.asarray(x)
  return np.asarray(x, np.float64)


def require_float64(x, name: str) -> None:
  """Raises if a closed form is being traced in float32."""
  if x.dtype != np.float64:
    raise ValueError(
      f"{name} is traced in {x.dtype}, and its pole offsets need float64. "
      "Wrap the transformation: `with theory.float64(): jax.grad(...)(...)`, "
      "or use `risk_scan`, which also runs in float32."
    )
