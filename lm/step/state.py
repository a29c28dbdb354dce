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
    opt_state: Of the optimiser, the averages of the weights included.
    halted: Whether a loss or gradient was not finite, bool []. The state is
      then the one before that update, and does not change any more.
    frozen: The model's own leaves where they are not trained
      (`lm/weights/table.py`); else ().
  """

  step: Any
  params: Any
  opt_state: Any
  halted: Any
  frozen: Any = ()


def init_state(
  params: Any, tx: optax.GradientTransformation, frozen: Any = ()
) -> TrainState:
  """State before the first update.

  Args:
    params: Parameters.
    tx: The optimiser.
    frozen: What is carried but not trained.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    halted=jnp.zeros((), bool),
    frozen=frozen,
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
