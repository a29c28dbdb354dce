"""Which operand of a product is rounded how, and recipes by name.

A layer Y = X W has three products: Y = X W, dX = G W' and dW = X' G, where G is
the gradient of Y. Each has two operands, so there are six slots; blocks lie
along the axis that a product sums, so an operand is cut twice. What a slot
leaves empty stays as it is. `product.py` computes with slots.

Sources: OCP Microscaling Formats (MX) v1.0; https://arxiv.org/abs/2506.08027
(MXFP8, scales rounded up); https://arxiv.org/abs/2506.20752 (instabilities of
OCP's scales); https://arxiv.org/abs/2509.25149 (NVFP4).
"""

import dataclasses

from ..common import checks
from .grids import E2M1, E3M2, E4M3, E5M2, Grid
from .scales import UNBIASED, Quantizer, check_whole

SLOTS = ("x_y", "w_y", "g_dx", "w_dx", "x_dw", "g_dw")
PRODUCTS = {"y": ("x_y", "w_y"), "dx": ("g_dx", "w_dx"), "dw": ("x_dw", "g_dw")}
SOURCES = ("original", "rounded")


@dataclasses.dataclass(frozen=True)
class Slot:
  """How one operand of a product is rounded; hashable.

  Attributes:
    grid: See `Quantizer`.
    block_size: Elements of a block along the summed axis; a shorter axis, or
      the rest of one, is a shorter block.
    scale: The rule of the scales, see `Quantizer`.
    random: Whether the operand is rounded at random, without bias. The rule of
      the scales must be one that nothing saturates.
    square: Whether blocks are squares over the two axes that the products of
      the operand sum, so that both products see the same numbers.
    batch_axes: Leading axes of the operand over which the scale of the whole
      array is taken separately, for "nvfp4" and "nvfp4_up"; 1 for sequences
      that must not see one another.
  """

  grid: Grid
  block_size: int = 32
  scale: str = "pow2_ceil"
  random: bool = False
  square: bool = False
  batch_axes: int = 0

  def __post_init__(self):
    check_whole("block_size", self.block_size, 1, "32")
    self.quantizer((0, 1) if self.square else 0, 0)
    if self.random and self.scale not in UNBIASED:
      raise ValueError(
        f"scale={self.scale!r} saturates the largest elements, so random=True "
        f"is biased; take one of {', '.join(UNBIASED)}."
      )

  def quantizer(
    self, axis: int | tuple[int, int], batch_axes: int | None = None
  ) -> Quantizer:
    """The quantizer of an operand, cut along an axis or a pair of axes."""
    stacked = self.batch_axes if batch_axes is None else batch_axes
    return Quantizer(self.grid, axis, self.block_size, self.scale, stacked)


@dataclasses.dataclass(frozen=True)
class Slots:
  """The six operands of a layer's products, each rounded or not; hashable.

  Attributes:
    x_y: X in Y = X W.
    w_y: W in Y = X W.
    g_dx: G in dX = G W'.
    w_dx: W in dX = G W'.
    x_dw: X in dW = X' G.
    g_dw: G in dW = X' G.
    rotate: Names of `PRODUCTS` whose operands are both multiplied by an
      orthogonal 16 x 16 matrix along the summed axis, see `hadamard`. The
      matrix cancels where nothing is rounded.
    backward_from: "original": the backward products round X and W themselves,
      as microxcaling and TransformerEngine do. "rounded": what the forward
      product has made of X and W, so that the gradient is that of the rounded
      layer.
  """

  x_y: Slot | None = None
  w_y: Slot | None = None
  g_dx: Slot | None = None
  w_dx: Slot | None = None
  x_dw: Slot | None = None
  g_dw: Slot | None = None
  rotate: tuple[str, ...] = ()
  backward_from: str = "original"

  def __post_init__(self):
    for name in SLOTS:
      slot = getattr(self, name)
      if slot is not None and not isinstance(slot, Slot):
        raise ValueError(f"{name}={slot!r} must be an optim.Slot or None.")
    for name in self.rotate:
      checks.choice("rotate", name, tuple(PRODUCTS))
    checks.choice("backward_from", self.backward_from, SOURCES)

  @property
  def random(self) -> tuple[str, ...]:
    """Names of the slots that draw random numbers."""
    return tuple(s for s in SLOTS if (x := getattr(self, s)) and x.random)


def every(
  operands: Slot, gradients: Slot | None = None, weights: Slot | None = None
) -> Slots:
  """All six slots: of X and W, of G if another, of W if another."""
  g, w = gradients or operands, weights or operands
  return Slots(operands, w, g, w, operands, g)


_FP8, _FP4 = Slot(E4M3), Slot(E2M1)
_NVFP4 = Slot(E2M1, 16, "nvfp4")

# By name; `dataclasses.replace` changes one.
PRODUCT_RECIPES = {
  "none": Slots(),
  "mxfp8_e4m3": every(_FP8),
  # Gradients have a wider range and fewer digits.
  "mxfp8_hybrid": every(_FP8, Slot(E5M2)),
  # OCP's scale, rounded down: the largest elements of a block may saturate.
  "paper_e4m3": every(Slot(E4M3, scale="pow2_floor")),
  "forward_only": Slots(x_y=_FP8, w_y=_FP8),
  "weights_only": Slots(w_y=_FP8, w_dx=_FP8),
  "mxfp6": every(Slot(E3M2)),
  "mxfp4": every(_FP4),
  "mxfp4_random": every(_FP4, Slot(E2M1, random=True)),
  "nvfp4": every(
    _NVFP4,
    Slot(E2M1, 16, "nvfp4_up", random=True),
    Slot(E2M1, 16, "nvfp4", square=True),
  ),
}
