"""Functions of numbers, over arrays of them."""

import jax
import jax.numpy as jnp


def over(fn, *arguments):
  """Calls `fn` for every entry of the broadcast arguments.

  Numbers alone are passed on as they are, so that a scalar call compiles to
  the scalar program. Arrays run one entry after the other, so the memory is
  that of one call.

  Args:
    fn: Maps scalars to a pytree of arrays.
    *arguments: Numbers or arrays that broadcast.

  Returns:
    The pytree, with the broadcast shape in front of each leaf's own shape.
  """
  arrays = jnp.broadcast_arrays(*(jnp.asarray(x) for x in arguments))
  shape = arrays[0].shape
  if not shape:
    return fn(*arrays)
  flat = tuple(x.reshape(-1) for x in arrays)
  out = jax.lax.map(lambda x: fn(*x), flat)
  return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), out)
