"""What a training run carries from one update to the next."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class TrainState(NamedTuple):
  """Arrays only, so that any checkpointer can save it.

  Trees of this shape also hold the state's shardings, or its abstract values.

  Attributes:
    step: Updates made, int32 [].
    params: Parameters, float32.
    opt_state: Of the optimiser.
    ema: Sum behind the average of the weights, like params; () without one.
    halted: A non-finite loss or gradient was met, bool []: the state is the
      one before that update, and stays so.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any
  halted: Any

  def averaged_with(self, params: Any, decay: float) -> Any:
    """The sum s <- decay s + (1 - decay) w with new weights; () without."""
    if not decay:
      return self.ema
    return optax.incremental_update(params, self.ema, 1 - decay)


def init_state(
  params: Any, tx: optax.GradientTransformation, ema: float
) -> TrainState:
  """State before the first update.

  Args:
    params: Parameters.
    tx: The optimiser.
    ema: Decay of the weight average; 0 keeps none.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.zeros_like, params) if ema else (),
    halted=jnp.zeros((), bool),
  )


def averaged_params(state: TrainState, ema: float, every: int = 1) -> Any:
  """The debiased average s / (1 - ema^n) of the weights after n averagings.

  Args:
    state: Before the first averaging the parameters themselves are returned.
    ema: Decay; with 0 there is no average and the parameters are returned.
    every: Steps from one averaging to the next.
  """
  if not ema:
    return state.params
  count = state.step // every
  bias = 1 - jnp.float32(ema) ** count
  return jax.tree.map(
    lambda s, p: jnp.where(count > 0, s / jnp.maximum(bias, 1e-38), p),
    state.ema,
    state.params,
  )


def digest(tree: Any) -> str:
  """SHA-256 over paths, dtypes and bytes of all leaves, for equality of bits.

  Args:
    tree: Arrays that this process can read whole.
  """
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    value = np.asarray(leaf)
    sha.update(f"{jax.tree_util.keystr(path)}{value.dtype}".encode())
    sha.update(value.tobytes())
  return sha.hexdigest()
