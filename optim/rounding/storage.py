"""Scales in their storage types; `round.py` has the public functions."""

import jax
import jax.numpy as jnp

from .blocks import Blocks
from .grids import E4M3
from .scales import Quantizer, Scale, block_max, nvfp4_tensor_scale


def store(blocks: Blocks, quantizer: Quantizer):
  """Converts scales to their storage type, one a block."""
  scale = blocks.scale
  if scale.exponent is not None:
    stored = (scale.exponent + 127).astype(jnp.uint8)
    stored = jnp.where(jnp.isnan(scale.factor), jnp.uint8(255), stored)
    stored = jax.lax.bitcast_convert_type(stored, jnp.float8_e8m0fnu)
  else:
    stored = scale.factor
  if quantizer.block_size is not None:
    stored = jnp.squeeze(stored, blocks.axes)
  if not quantizer.scale.startswith("nvfp4"):
    return stored
  top = block_max(blocks.x, blocks.axes)
  tensor = nvfp4_tensor_scale(top, quantizer)
  if quantizer.block_size is not None:
    tensor = jnp.squeeze(tensor, blocks.axes)
  # Blocks of zeros have s = 1, which may be beyond E4M3: 0 is stored.
  stored = jnp.clip(stored / tensor, 0, E4M3.code_max)
  stored = jnp.where(top.reshape(stored.shape) == 0, 0, stored)
  return stored.astype(jnp.float8_e4m3fn), tensor


def load(stored, axes: tuple, quantizer: Quantizer) -> Scale:
  """Undoes `store`."""
  if quantizer.scale.startswith("nvfp4"):
    block, tensor = stored
    stored = block.astype(jnp.float32) * tensor
  if quantizer.block_size is not None:
    stored = jnp.expand_dims(stored, axes)
  nan = jnp.asarray(jnp.nan, jnp.float32)
  if stored.dtype != jnp.float8_e8m0fnu:
    return Scale(stored, None, None)
  field = jax.lax.bitcast_convert_type(stored, jnp.uint8).astype(jnp.int32)
  factor = jnp.where(field == 255, nan, jnp.float32(1))
  return Scale(factor, jnp.where(field == 255, 0, field - 127), None)
