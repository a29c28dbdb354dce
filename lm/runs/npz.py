"""A tree of weights as flat NumPy arrays, some of them codes and scales.

A rounded weight PATH is stored as `PATH#shape`, `PATH#codes` and `PATH#scale0`
(and, for a scale of two levels, `PATH#scale1`): the bytes of the storage types
of `optim.quantize`, two codes a byte for types of four bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optim

from ..model.params import by_path

_FOUR_BITS = ("int4", "float4_e2m1fn")


def pack(params: Any, quantizers: Any) -> dict[str, np.ndarray]:
  """Arrays by path.

  Args:
    params: Tree of dictionaries of float32 arrays.
    quantizers: Tree like params of `Quantizer | None`; None rounds nothing.
  """
  flat = {}
  for name, leaf in by_path(params).items():
    quantizer = _find(quantizers, name)
    if quantizer is None:
      flat[name] = np.asarray(leaf)
      continue
    codes, scale = optim.quantize(jnp.asarray(leaf), quantizer)
    flat[f"{name}#shape"] = np.array(leaf.shape)
    flat[f"{name}#codes"] = _to_bytes(codes)
    for i, part in enumerate(jax.tree.leaves(scale)):
      flat[f"{name}#scale{i}"] = _to_bytes(part)
  return flat


def unpack(flat: dict[str, np.ndarray], quantizers: Any) -> Any:
  """Undoes `pack`: a tree of dictionaries, rounded weights on their grid.

  Args:
    flat: From `pack`.
    quantizers: Those of `pack`, for the weights that were rounded.

  Raises:
    KeyError: If a quantizer, or a part of a weight, is missing.
  """
  params: dict[str, Any] = {}
  for key, value in flat.items():
    name, _, part = key.partition("#")
    if part not in ("", "codes"):
      continue
    *folders, leaf = name.split("/")
    node = params
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = _dequantize(flat, name, quantizers) if part else value
  return params


def _find(quantizers: Any, name: str) -> Any:
  for key in name.split("/"):
    quantizers = None if quantizers is None else quantizers[key]
  return quantizers


def _dequantize(
  flat: dict[str, np.ndarray], name: str, quantizers: Any
) -> np.ndarray:
  quantizer = _find(quantizers, name)
  shape = tuple(int(n) for n in flat[f"{name}#shape"])
  codes, scale = jax.eval_shape(
    lambda x: optim.quantize(x, quantizer),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )
  parts, treedef = jax.tree.flatten(scale)
  parts = [
    _from_bytes(flat[f"{name}#scale{i}"], part) for i, part in enumerate(parts)
  ]
  scale = jax.tree.unflatten(treedef, parts)
  codes = _from_bytes(flat[f"{name}#codes"], codes)
  return np.asarray(optim.dequantize(codes, scale, quantizer))


def _to_bytes(x: jax.Array) -> np.ndarray:
  value = np.asarray(x)
  if x.dtype.name in _FOUR_BITS:
    flat = value.reshape(-1).view(np.uint8) & 15
    flat = np.pad(flat, (0, flat.size % 2))
    return flat[::2] | (flat[1::2] << 4)
  return value if value.dtype == np.float32 else value.view(np.uint8)


def _from_bytes(value: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
  if like.dtype.name in _FOUR_BITS:
    flat = np.stack([value & 15, value >> 4], axis=-1).reshape(-1)
    flat = flat[: int(np.prod(like.shape))]
    if like.dtype.name == "int4":
      flat = (flat.astype(np.int8) ^ 8) - 8  # The sign bit is the fourth.
      return jnp.asarray(flat.reshape(like.shape)).astype(like.dtype)
    return jnp.asarray(flat.view(like.dtype).reshape(like.shape))
  return jnp.asarray(value.view(like.dtype).reshape(like.shape))
