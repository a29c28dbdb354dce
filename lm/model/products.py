"""Every matrix product of the model goes through here, by its name.

    attention.q, .k, .v, .out    projections of the softmax mixer
    attention.scores, .values    queries with keys, weights with values
    ffn.in, ffn.gate, ffn.out    the dense feed-forward block
    embed                        the one-hot look-up, on meshes with `tensor`
    head                         the logits, also of a tied model

A fused attention kernel computes scores and values by itself. An entry of
`PRODUCTS` says how products are computed; `config.model.product` names the
entry.
"""

import typing
from collections.abc import Callable, Iterable

import jax

from ..config.schema import ModelConfig
from . import entries, product_slots
from .draws import Draws
from .product import product


class Product(typing.NamedTuple):
  """A way to compute the products of the model.

  Attributes:
    apply: (name, equation, x, w, out_dtype, context) -> what the equation says
      of two arrays of one dtype, as `out_dtype`. Each letter of the equation
      occurs in two of its three parts. `context` is a `Context`.
    problems: (cfg) -> what is wrong with the model's configuration.
    draws: (cfg) -> whether products draw random numbers; then training tells
      them `Context.draws`.
    options: Frozen dataclass with the keys of `config.model.product_kwargs` and
      their defaults: see `lm/model/entries.py`. None: there are none.
  """

  apply: Callable[..., jax.Array]
  problems: Callable[[ModelConfig], Iterable[str]] = lambda cfg: ()
  draws: Callable[..., bool] = lambda cfg: False
  options: type | None = None


def _plain(name, equation, x, w, out_dtype, context):
  del name, context
  return product(equation, x, w, out_dtype=out_dtype)


PRODUCTS = {
  "plain": Product(_plain),
  "slots": Product(
    product_slots.apply,
    product_slots.problems,
    product_slots.draws,
    product_slots.Options,
  ),
}


class Context(typing.NamedTuple):
  """What a part of the model is told beside its weights and its inputs.

  Attributes:
    cfg: Model section of the configuration.
    layer: Number of the layer, traced where layers are scanned; None outside.
    draws: Keys of random numbers; None where nothing is drawn, as in
      evaluations.
  """

  cfg: ModelConfig
  layer: int | jax.Array | None = None
  draws: Draws | None = None

  def contract(
    self,
    name: str,
    equation: str,
    x: jax.Array,
    w: jax.Array,
    *,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """The product with this name, as an einsum.

    Args:
      name: Such as "ffn.in".
      equation: Such as "bld,df->blf".
      x: Activations.
      w: Parameter, or activations; it is cast to the dtype of `x`.
      out_dtype: Of the result; None: that of `x`.
    """
    entry = entries.chosen("product", self.cfg, PRODUCTS)
    w, out_dtype = w.astype(x.dtype), out_dtype or x.dtype
    return entry.apply(name, equation, x, w, out_dtype, self)


def draws(cfg: ModelConfig) -> bool:
  """Whether the products of a model draw random numbers in training."""
  return entries.chosen("product", cfg, PRODUCTS).draws(cfg)
