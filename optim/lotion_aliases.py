"""LOTION with AdamW and with SOAP: a learning rate and everything else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import arguments, blocks, kronecker
from .factor_curvature import factor_diagonal
from .lotion import add_rounding_penalty, with_rounding_penalty
from .quantize_params import QuantizerTree
from .soap import FirstStep, Refresh, soap


def lotion_adamw(
  learning_rate: optax.ScalarOrSchedule,
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Any | None = None,
  mu_dtype: Any | None = None,
  curvature_decay: float = 0.99,
  penalty_mask: Any | None = None,
  scale_gradient: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """AdamW on the loss plus the penalty: `add_rounding_penalty`, `optax.adamw`.

  The curvature is a second copy beside Adam's second moment, which cannot
  serve: it averages the penalised gradient.

  Args:
    learning_rate: Number, array or schedule; decay it to about zero, or the
      weights keep hopping around the grid.
    quantizer: As of `add_rounding_penalty`.
    strength: As of `add_rounding_penalty`.
    b1: Of Adam.
    b2: Of Adam.
    eps: Of Adam.
    weight_decay: Of AdamW.
    mask: True decays; as of `optax.adamw`.
    mu_dtype: Of Adam.
    curvature_decay: As of `add_rounding_penalty`.
    penalty_mask: The `mask` of `add_rounding_penalty`.
    scale_gradient: As of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params` and takes `curvature`.

  Raises:
    ValueError: As `add_rounding_penalty`.
  """
  arguments.check_learning_rate(learning_rate)
  arguments.check_positive("weight_decay", weight_decay, zero_too=True)
  penalty = add_rounding_penalty(
    quantizer,
    strength,
    curvature_decay=curvature_decay,
    mask=penalty_mask,
    scale_gradient=scale_gradient,
  )
  adamw = optax.adamw(
    learning_rate,
    b1,
    b2,
    eps,
    mu_dtype=mu_dtype,
    weight_decay=weight_decay,
    mask=mask,
  )
  return optax.chain(penalty, _in_float32(adamw))


def lotion_soap(  # noqa: D417
  learning_rate: optax.ScalarOrSchedule,
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  *,
  curvature_decay: float = 0.99,
  penalty_mask: Any | None = None,
  scale_gradient: bool = True,
  b1: float = 0.95,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  mask: Any | None = None,
  precondition_frequency: int = 10,
  max_precond_dim: int = 10_000,
  dimension_numbers: blocks.DimensionTree = None,
  one_sided: bool = False,
  factorized: bool = False,
  block_size: int | None = None,
  normalize: bool = False,
  refresh: Refresh = "qr",
  first_step: FirstStep = "skip",
  stagger: bool = True,
  mu_dtype: Any | None = None,
  nu_dtype: Any | None = None,
  factor_dtype: Any | None = None,
  basis_dtype: Any | None = None,
  precision: tuple[str, str, str] = kronecker.Precision(),
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  """SOAP on the loss plus the penalty, whose curvature is SOAP's own factors.

  g is `optim.factor_diagonal` of the state before the step: no second copy but
  for penalised leaves without a factor, and no penalty at the first call. The
  other arguments are those of `optim.soap`.

  Args:
    learning_rate: As of `soap`; decay it to about zero.
    quantizer: As of `add_rounding_penalty`.
    strength: As of `add_rounding_penalty`.
    curvature_decay: Of the averages of leaves without a factor.
    penalty_mask: The `mask` of `add_rounding_penalty`.
    scale_gradient: As of `add_rounding_penalty`.
    block_size: Of SOAP's factors; the quantizer has one of its own.

  Returns:
    A transform whose `update` needs `params`.

  Raises:
    ValueError: As `soap` and `add_rounding_penalty`.
  """
  own = ("quantizer", "strength", "curvature_decay", "penalty_mask")
  own = (*own, "scale_gradient", "learning_rate")
  options = {k: v for k, v in locals().items() if k not in (*own, "own")}
  shared = ("max_precond_dim", "dimension_numbers", "one_sided", "block_size")
  shared = (*shared, "stack_shards", "stack_axes")

  def curvature(opt_state, params):
    return factor_diagonal(
      opt_state,
      params,
      decay=b2 if shampoo_beta is None else shampoo_beta,
      **{k: options[k] for k in shared},
    )

  return with_rounding_penalty(
    soap(learning_rate, **options),
    quantizer,
    strength,
    curvature,
    curvature_decay=curvature_decay,
    mask=penalty_mask,
    scale_gradient=scale_gradient,
  )


def _in_float32(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Runs optax's moments in float32 for narrower parameters."""
  tx = optax.with_extra_args_support(tx)

  def widen(tree):
    return jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )

  def init_fn(params):
    return tx.init(widen(params))

  def update_fn(updates, state, params=None, **extra_args):
    stepped: Any = tx.update(widen(updates), state, widen(params), **extra_args)
    wide, state = stepped
    updates = jax.tree.map(lambda x, u: x.astype(u.dtype), wide, updates)
    return updates, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
