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
from . import entries
from .product import product


class Product(typing.NamedTuple):
  """A way to compute the products of the model.

  Attributes:
    apply: (name, equation, x, w, out_dtype, cfg) -> what the equation says of
      two arrays of one dtype, as `out_dtype`. Each letter of the equation
      occurs in two of its three parts.
    problems: (cfg) -> what is wrong with the model's configuration.
    options: Frozen dataclass with the keys of `config.model.product_kwargs` and
      their defaults: see `lm/model/entries.py`. None: there are none.
  """

  apply: Callable[..., jax.Array]
  problems: Callable[[ModelConfig], Iterable[str]] = lambda cfg: ()
  options: type | None = None


def _plain(name, equation, x, w, out_dtype, cfg):
  del name, cfg
  return product(equation, x, w, out_dtype=out_dtype)


PRODUCTS = {"plain": Product(_plain)}


class Context(typing.NamedTuple):
  """What a part of the model is told beside its weights and its inputs."""

  cfg: ModelConfig

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
    return entry.apply(name, equation, x, w, out_dtype, self.cfg)
