"""From a file of microscaling results to ours: `run(npz, key)`.

The file's settings are in the words of its authors (microxcaling,
TransformerEngine, torchao). Rounding half away from zero, rounding toward zero
and torchao's other scales exist in NumPy here alone: they explain the peers. In
float32 the file's `y` of a layer is without its bias.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import optim
from optim.rounding.product import rotated

GRIDS = {
  "fp8_e4m3": optim.E4M3, "fp8_e5m2": optim.E5M2, "fp6_e3m2": optim.E3M2,
  "fp6_e2m3": optim.E2M3, "fp4_e2m1": optim.E2M1, "int8": optim.MXINT8,
  "int4": optim.INT4,
}  # fmt: skip
# The authors' name of each slot.
SLOTS = {
  "x_y": "a_elem_format", "w_y": "w_elem_format",
  "g_dx": "a_elem_format_bp_os", "w_dx": "w_elem_format_bp",
  "x_dw": "a_elem_format_bp", "g_dw": "a_elem_format_bp_ex",
}  # fmt: skip
_FORWARD = ("x_y", "w_y")
_EVEN = "even"
_WHOLE = {
  "even": np.rint, "nearest": lambda k: np.floor(k + 0.5), "floor": np.floor,
}  # fmt: skip


_nearest = jax.jit(optim.round_nearest, static_argnums=1)
_stored = jax.jit(optim.quantize, static_argnums=1)


def run(npz, key):
  """Our array for a key, of the shape and dtype of npz[key].

  Raises:
    KeyError: For a key that is none of the file's, or of a section without a
      counterpart here.
  """
  section, *rest = key.split("/")
  known = {
    "quantize": _quantize, "linear": _linear, "matmul": _matmul,
    "nvfp4": _nvfp4, "torchao": _torchao, "bump": _bump,
  }  # fmt: skip
  if section not in known or key not in npz:
    raise KeyError(key)
  found = np.asarray(known[section](npz, rest))
  return found.astype(npz[key].dtype).reshape(npz[key].shape)


def _quantize(npz, rest):
  name, *case = rest
  x = npz[f"quantize/{name}/x"]
  if case == []:
    raise KeyError(name)
  if rest[-1] == "x":
    return x
  form, axis, block, mode = case
  axis, block = int(axis.removeprefix("axis")), int(block.removeprefix("block"))
  return blocks(x, form, axis, block, mode)


def blocks(x, form, axis, block, mode, scale="pow2_floor"):
  """Rounded blocks along an axis: by `optim` if even, else by NumPy.

  A scale "float64" is OCP's in NumPy, for a judge.
  """
  grid = GRIDS[form]
  if mode == _EVEN and scale in ("pow2_floor", "pow2_ceil"):
    return _nearest(x, optim.Quantizer(grid, axis, block, scale))
  lines = np.moveaxis(np.asarray(x, np.float64), axis, -1)
  size = min(block, lines.shape[-1])
  pad = -lines.shape[-1] % size
  cut = np.pad(lines, [(0, 0)] * (lines.ndim - 1) + [(0, pad)])
  cut = cut.reshape(*cut.shape[:-1], -1, size)
  s = 2.0 ** exponents(np.abs(cut).max(-1, keepdims=True), grid, scale)
  with np.errstate(invalid="ignore"):
    out = elements(cut / s, grid, mode) * s
  finite = np.isfinite(cut).all(-1, keepdims=True)
  out = np.where(finite, out, np.nan).reshape(*lines.shape[:-1], -1)
  out = out[..., : lines.shape[-1]]
  return np.moveaxis(out, -1, axis).astype(np.float32)


def exponents(amax, grid, scale="pow2_floor"):
  """log2 of the scales by microxcaling's rule or one of torchao's."""
  fine = np.where(np.isfinite(amax) & (amax > 0), amax, 1.0)
  fraction, power = np.frexp(fine)
  power = power - 1
  if scale == "ceil":
    power = power + (fraction != 0.5)
  elif scale == "even":  # Up if the largest, rounded to the grid, is beyond.
    power = power + (fraction * 2 >= 2 - 2.0 ** -(grid.mantissa_bits + 1))
  low = -127 - grid.max_exponent
  power = np.where(amax > 0, power, low)
  return np.clip(power - grid.max_exponent, -127, 127)


def elements(y, grid, mode):
  """Codes of y by frexp, for a mode of microxcaling; saturates."""
  if grid.mantissa_bits is None:
    gap = np.full_like(y, 2.0**grid.min_exponent)
  else:
    _, power = np.frexp(np.where(np.isfinite(y), y, 0))
    power = np.maximum(power - 1, grid.min_exponent)
    gap = 2.0 ** (power - grid.mantissa_bits)
  k = np.abs(y) / gap
  k = _WHOLE[mode](k)
  return np.copysign(np.minimum(k * gap, grid.code_max), y)


# --- Layers.


def slots_of(spec):
  """`optim.Slots` of the authors' settings."""
  forward_only = not spec["quantize_backprop"]
  return optim.Slots(
    **{
      name: optim.Slot(GRIDS[spec[key]], spec["block_size"], "pow2_floor")
      for name, key in SLOTS.items()
      if spec[key] and not (forward_only and name not in _FORWARD)
    }
  )


def _linear(npz, rest):
  shape, *case = rest
  x, w, b, g = (npz[f"linear/{shape}/{name}"] for name in "xwbg")
  if len(case) == 1:
    return {"x": x, "w": w, "b": b, "g": g}[case[0]]
  name, result = case
  text = npz[f"linear/{shape}/{name}/spec"]
  if result == "spec":
    return text
  spec = json.loads(str(text))
  layer = _by_optim if spec["round"] == _EVEN else _by_numpy
  return layer(spec, x, w, b, g)[result]


def _by_optim(spec, x, w, b, g):
  return jax.jit(lambda *args: _layer(spec, *args))(x, w, b, g)


def _layer(spec, x, w, b, g):
  dtype = jnp.bfloat16 if spec["bfloat"] else jnp.float32
  slots = slots_of(spec)

  def product(equation, x, w):
    wide = jnp.einsum(equation, x, w, preferred_element_type=jnp.float32)
    return wide.astype(dtype)

  def layer(x, w, b):
    y = optim.quantized_einsum(
      "...i,oi->...o".replace("...", "bl"[-(x.ndim - 1) :]), x, w, slots,
      einsum=product,
    )  # fmt: skip
    return y + b if spec["bfloat"] else y

  args = (jnp.asarray(v, dtype) for v in (x, w, b))
  y, pull = jax.vjp(layer, *args)
  dx, dw, _ = pull(jnp.asarray(g, dtype))
  rows = jnp.asarray(g, dtype).astype(jnp.float32).reshape(-1, g.shape[-1])
  return {"y": y, "dx": dx, "dw": dw, "db": rows.sum(0).astype(dtype)}


def _by_numpy(spec, x, w, b, g):
  """The released layer: everything half away from zero."""
  mode, cast = spec["round"], _bfloat16 if spec["bfloat"] else np.asarray
  x, w, b, g = (cast(v) for v in (x, w, b, g))
  names = {s: spec[key] for s, key in SLOTS.items()}
  if not spec["quantize_backprop"]:
    names |= {s: None for s in names if s not in _FORWARD}

  def rounded(slot, value, axis):
    form = names[slot]
    if form is None:
      return value
    return blocks(value, form, axis, spec["block_size"], mode)

  y = cast(rounded("x_y", x, -1) @ rounded("w_y", w, -1).T)
  dx = rounded("g_dx", g, -1) @ rounded("w_dx", w, 0)
  tokens = -2
  pair = rounded("g_dw", g, tokens), rounded("x_dw", x, tokens)
  dw = pair[0].reshape(-1, g.shape[-1]).T @ pair[1].reshape(-1, x.shape[-1])
  db = g.reshape(-1, g.shape[-1]).sum(0)
  y = cast(y + b) if spec["bfloat"] else y
  return {"y": y, "dx": cast(dx), "dw": cast(dw), "db": cast(db)}


def _bfloat16(x):
  """Rounds to bfloat16, half away from zero."""
  bits = np.asarray(x, np.float32).view(np.uint32)
  return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


def _matmul(npz, rest):
  shape, *case = rest
  left, right, g = (
    npz[f"matmul/{shape}/{name}"] for name in ("left", "right", "g")
  )
  if len(case) == 1:
    return {"left": left, "right": right, "g": g}[case[0]]
  form, result = case
  slot = optim.Slot(GRIDS[form], 32, "pow2_floor")
  slots = optim.Slots(*[slot] * 6)

  def product(left, right):
    return optim.quantized_einsum("bhik,bhkj->bhij", left, right, slots)

  y, pull = jax.vjp(product, left, right)
  dleft, dright = pull(jnp.asarray(g))
  return {"y": y, "dleft": dleft, "dright": dright}[result]


# --- Two-level scales, and torchao.


def _nvfp4(npz, rest):
  signs = npz["nvfp4/signs"]
  matrix = optim.hadamard(16, tuple(map(int, signs)))
  if rest == ["signs"]:
    return signs
  if rest == ["hadamard"]:
    return matrix * 4  # Without 16^-1/2.
  if rest == ["rotated_normal_transposed"]:
    return rotated(npz["nvfp4/normal/x"].T, -1, matrix)
  name, *case = rest
  x = npz[f"nvfp4/{name}/x"]
  if case == ["x"]:
    return x
  tile, side, result = case
  x = x if side == "row" else x.T
  if tile.endswith("_rht"):
    x = np.asarray(rotated(x, -1, matrix))
  axis = (0, 1) if tile.startswith("16x16") else -1
  codes, (scale, _) = _stored(x, optim.Quantizer(optim.E2M1, axis, 16, "nvfp4"))
  scale = np.asarray(scale).astype(np.float32)
  if tile.startswith("16x16"):
    scale = np.repeat(scale, 16, 0)
  found = {"codes": codes, "scale": scale, "amax": np.abs(x).max()}
  return np.asarray(found[result])


def _torchao(npz, rest):
  name, *case = rest
  x = npz[f"torchao/{name}/x"]
  if case == ["x"]:
    return x
  if case[0] == "nvfp4":
    quantizer = optim.Quantizer(optim.E2M1, -1, 16, "nvfp4")
    codes, (scale, tensor) = _stored(x, quantizer)
    return np.asarray(
      {"codes": codes, "scale": scale, "tensor_scale": tensor}[case[1]]
    )
  form, rule, result = case
  own = {"floor": "pow2_floor", "rceil": "pow2_ceil"}.get(rule, rule)
  if result == "y":
    return blocks(x, form, -1, 32, _EVEN, own)
  if own == rule:
    amax = np.abs(x.reshape(len(x), -1, 32)).max(-1)
    return exponents(amax.astype(np.float64), GRIDS[form], rule)
  quantizer = optim.Quantizer(GRIDS[form], -1, 32, own)
  _, scale = _stored(x, quantizer)
  fields = np.asarray(scale).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
  return np.log2(fields)


def _bump(npz, rest):
  name, what = rest
  if what not in ("x", "floor"):
    raise KeyError(what)
  x = npz[f"bump/{name}/x"]
  return x if what == "x" else blocks(x, "fp8_e4m3", -1, 32, _EVEN)
