"""Products whose operands are rounded, by slot and by the name of the product.

`config.product` chooses this entry: a recipe of `optim.PRODUCT_RECIPES` for the
projections of all layers. The products of attention, the head, the look-up and
a router stay as they are unless an override names them. An override is

    ("ffn.out", "mxfp8_hybrid")                      another recipe
    ("ffn.out", (("g_dw", "fp8_e5m2"),))             some slots of the recipe
    ("attention", "none")                            all products below a name

A slot is written GRID, or with more words: "fp4/16/nvfp4_up/random". The words
are the block size, the rule of the scales, `random` and `square`.

The two-level scales of X and G are of a row, not of a microbatch: so losses do
not depend on how rows are put together.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

import optim

from ..config import names
from ..config.errors import ConfigError
from ..config.schema import ModelConfig
from .product import product

GRIDS = {
  "int4": optim.INT4, "int8": optim.INT8, "mxint8": optim.MXINT8,
  "fp4": optim.E2M1, "fp6_e2m3": optim.E2M3, "fp6_e3m2": optim.E3M2,
  "fp8_e4m3": optim.E4M3, "fp8_e5m2": optim.E5M2,
}  # fmt: skip
SLOTS = ("x_y", "w_y", "g_dx", "w_dx", "x_dw", "g_dw")
# As they are unless an override names them; the paper's recipe has the head.
HIGH = ("attention.scores", "attention.values", "ffn.router", "embed", "head")
_HEADS = ("paper_e4m3",)
NAMES = (
  *(f"attention.{x}" for x in ("q", "k", "v", "out", "scores", "values")),
  *(f"ffn.{x}" for x in ("in", "gate", "out", "router")),
  "embed",
  "head",
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of the entry, filled in from `config.product`.

  Attributes:
    recipe: Of `optim.PRODUCT_RECIPES`.
    overrides: (name of a product or of a group, recipe or slots), later ones
      first.
    high_layers: So many first and last layers stay as they are.
  """

  recipe: str = "none"
  overrides: tuple = ()
  high_layers: int = dataclasses.field(
    default=0, metadata={"least": 0, "unit": "layers"}
  )


def apply(name, equation, x, w, out_dtype, context, *, options: Options):
  """The product with rounded operands."""
  fn = functools.partial(product, equation, out_dtype=out_dtype)
  slots = slots_of(options, name)
  if slots == optim.Slots() or _is_high(context, options):
    return fn(x, w)
  slots = by_rows(slots, equation)
  rounded = optim.quantized_product(fn, slots, optim.equation_axes(equation))
  if not slots.random:
    return rounded(x, w)
  if context.draws is None:  # Nothing goes back, so only the forward slots.
    axes = optim.equation_axes(equation)
    forward = optim.Slots(x_y=_nearest(slots.x_y), w_y=_nearest(slots.w_y))
    return optim.quantized_product(fn, forward, axes)(x, w)
  keys = context.draws.at(name, context.layer)
  return rounded(x, w, keys.update, keys.rows)


def draws(cfg: ModelConfig, options: Options) -> bool:
  """Whether a slot of any product is rounded at random."""
  del cfg
  return any(slots_of(options, name).random for name in NAMES)


def rounds_gradients(cfg: ModelConfig) -> bool:
  """Whether G of any product is rounded, which forward mode cannot do."""
  options = Options(**dict(cfg.product_kwargs))
  return any(_rounds(slots_of(options, name)) for name in NAMES)


def forward_recipes() -> list[str]:
  """The recipes that forward mode can differentiate."""
  return [n for n, slots in optim.PRODUCT_RECIPES.items() if not _rounds(slots)]


def _rounds(slots: optim.Slots) -> bool:
  return bool(slots.g_dx or slots.g_dw or {*slots.rotate} - {"y"})


@functools.lru_cache
def slots_of(options: Options, name: str) -> optim.Slots:
  """The slots of the product with this name.

  Raises:
    ValueError: For an unknown recipe, slot or format.
  """
  for part, given in reversed(options.overrides):
    if name == part or name.startswith(f"{part}."):
      if isinstance(given, str):
        return recipe(given)
      slots = recipe(options.recipe)
      own: dict[str, Any] = {name: slot(text) for name, text in given}
      return dataclasses.replace(slots, **own)
  left_out = name in HIGH and not (name == "head" and options.recipe in _HEADS)
  return recipe("none" if left_out else options.recipe)


def recipe(name: str) -> optim.Slots:
  """The recipe of a name, or an error that lists them."""
  if name not in optim.PRODUCT_RECIPES:
    known = ", ".join(optim.PRODUCT_RECIPES)
    hint = names.nearest(name, optim.PRODUCT_RECIPES)
    raise ValueError(f"{name!r} is not a recipe; one of {known}.{hint}")
  return optim.PRODUCT_RECIPES[name]


def slot(text: str) -> optim.Slot | None:
  """The slot that is written so; None for "none"."""
  grid, *words = text.split("/")
  if grid == "none" and not words:
    return None
  if grid not in GRIDS:
    raise ValueError(
      f"{text!r} begins with none of none, {', '.join(GRIDS)}."
      f"{names.nearest(grid, GRIDS)}"
    )
  options: dict[str, Any] = {}
  for word in words:
    if word.isdecimal():
      options["block_size"] = int(word)
    elif word in ("random", "square"):
      options[word] = True
    else:
      options["scale"] = word
  return optim.Slot(GRIDS[grid], **options)


def by_rows(slots: optim.Slots, equation: str) -> optim.Slots:
  """The slots with scales of a row where an operand has rows."""
  x, w, y = equation.replace("->", ",").split(",")
  rows = {"x": x[0], "w": w[0], "g": y[0]}
  stacked: dict[str, Any] = {
    name: dataclasses.replace(found, batch_axes=1)
    for name in SLOTS
    if (found := getattr(slots, name)) and rows[name[0]] == "b"
  }
  return dataclasses.replace(slots, **stacked)


def problems(cfg: ModelConfig) -> Iterator[str]:
  """Unknown recipes, products, slots and formats; layers that are scanned."""
  options = Options(**dict(cfg.product_kwargs))
  path = "config.product"
  try:
    recipe(options.recipe)
  except ValueError as error:
    yield f"{path}.recipe={error}"
    return
  for entry in options.overrides:
    yield from _override_problems(f"{path}.overrides", entry, options)
  if not options.high_layers:
    return
  if cfg.layers != "unroll":
    yield (
      f"{path}.high_layers={options.high_layers} needs layers one by one, but "
      f"config.model.layers={cfg.layers!r}; set 'unroll'."
    )
  elif 2 * options.high_layers >= cfg.N:
    yield (
      f"{path}.high_layers={options.high_layers} first and last layers are all "
      f"of config.model.N={cfg.N}; take fewer."
    )


def _override_problems(path: str, entry: Any, options: Options):
  if not isinstance(entry, tuple) or len(entry) != 2:
    yield f"{path} has {entry!r}, expected pairs (product, recipe or slots)."
    return
  part, given = entry
  known = {*NAMES, *(name.split(".")[0] for name in NAMES)}
  if part not in known:
    yield (
      f"{path} names the product {part!r}; one of {', '.join(sorted(known))}."
      f"{names.nearest(part, known)}"
    )
  elif not isinstance(given, str):
    pairs = all(isinstance(p, tuple) and len(p) == 2 for p in given)
    if not pairs or {s for s, _ in given} - {*SLOTS}:
      yield (
        f"{path} of {part!r}: {given!r} must be a recipe, or pairs (slot, "
        f"format) of {', '.join(SLOTS)}."
      )
      return
  try:
    slots_of(dataclasses.replace(options, overrides=(entry,)), part)
  except ValueError as error:
    yield f"{path} of {part!r}: {error}"


def _is_high(context: Any, options: Options) -> bool:
  layer = context.layer
  if not options.high_layers or layer is None:
    return False
  assert not isinstance(layer, jax.Array)
  return not options.high_layers <= layer < context.cfg.N - options.high_layers


def _nearest(slot: optim.Slot | None) -> optim.Slot | None:
  return slot and dataclasses.replace(slot, random=False)


def of_leaf(cfg: ModelConfig, path: str) -> optim.Slots:
  """The slots of the product with the parameter at a path; none for others."""
  *_, part, name = ["", *path.split("/")]
  group = {"attention": "attention", "mlp": "ffn"}.get(part)
  if cfg.product != "slots" or group is None:
    return optim.Slots()
  return slots_of(Options(**dict(cfg.product_kwargs)), f"{group}.{name}")


def summed_axes(path: str) -> tuple[int, int]:
  """Axes, from the end, of a projection that Y = X W and dX = G W' sum."""
  *_, part, name = ["", *path.split("/")]
  return (-3 if part == "attention" and name != "out" else -2), -1


def check_blocks(cfg: ModelConfig, specs: Any, shardings: Any) -> None:
  """Raises if blocks of a weight would lie across devices.

  Args:
    cfg: Model section of the configuration, resolved.
    specs: Table of the model, by path.
    shardings: Where each weight lies, by path.

  Raises:
    ConfigError: If they would.
  """
  for path, spec in specs.items():
    slots = of_leaf(cfg, path)
    shape = spec.shape
    held = shardings[path].shard_shape(shape)
    for slot, axis in zip(
      (slots.w_y, slots.w_dx), summed_axes(path), strict=True
    ):
      if slot is None or held[axis] == shape[axis]:
        continue
      if held[axis] % slot.block_size:
        raise ConfigError(
          f"config.product: blocks of {slot.block_size} along axis {axis} of "
          f"{path}, {shape}, would lie across devices, which hold "
          f"{held[axis]} entries each. Take another width, fewer devices along "
          "that axis, or a block size that divides it (config.product."
          "overrides)."
        )
