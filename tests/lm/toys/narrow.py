"""A toy product: operands are rounded to bfloat16."""

import jax.numpy as jnp

from lm.model.product import product
from lm.model.products import PRODUCTS, Product


def apply(name, equation, x, w, out_dtype, context):
  del name, context
  x, w = (a.astype(jnp.bfloat16).astype(a.dtype) for a in (x, w))
  return product(equation, x, w, out_dtype=out_dtype)


PRODUCTS["narrow"] = Product(apply)
