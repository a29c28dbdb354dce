"""A language model whose logits never exist all at once.

The outputs of a model with V classes are its largest array by far, and
Gauss-Newton needs two or three arrays of that size. Here the model is split
into a body and a head. The head is applied to one chunk of positions at a time.
Value, slope and curvature of the loss are computed for the chunk, and pulled
back to the hidden activations before the next chunk. Chunks cut the length and
not the rows, because the rows lie on different devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks
from ..common.tree import work_dtype


class ChunkedHead(NamedTuple):
  """Result of `chunked_lm_head`; also a plain (params, batch) -> logits."""

  body_fn: Callable[[Any, Any], jax.Array]
  head_fn: Callable[[Any, jax.Array], jax.Array]
  head_path: tuple[str, ...]
  num_chunks: int

  def __call__(self, params: Any, batch: Any) -> jax.Array:
    """Returns all logits at once, for small batches."""
    hidden = self.body_fn(params, batch)
    return self.head_fn(self.take(params), hidden)

  def take(self, params: Any) -> Any:
    """Returns the subtree of the head."""
    for name in self.head_path:
      if name not in params:
        raise ValueError(
          f"head_path={self.head_path} leads nowhere: no {name!r} among "
          f"{sorted(params)}."
        )
      params = params[name]
    return params

  def add(self, tree: Any, part: Any) -> Any:
    """Adds `part` to `tree` at the head. The body may use the head as well."""
    head = jax.tree.map(
      lambda a, b: a + b.astype(a.dtype), self.take(tree), part
    )
    return _put(tree, self.head_path, head)

  def chunks(self, tree: Any) -> Any:
    """[B, L, ...] -> [chunks, B, C, ...], with zeros at the end."""
    return jax.tree.map(lambda x: _cut(x, self.num_chunks), tree)

  def joined(self, chunks: jax.Array, length: int) -> jax.Array:
    """The inverse of `chunks` for an array of this length."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def chunked_lm_head(
  body_fn: Callable[[Any, Any], jax.Array],
  head_path: str | Sequence[str],
  num_chunks: int,
  *,
  head_fn: Callable[[Any, jax.Array], jax.Array] | None = None,
  transpose: bool = False,
) -> ChunkedHead:
  """Makes a model that never holds all its logits, to be passed as `model_fn`.

  Values and gradients are those of the whole model: for the gradient, for
  Gauss-Newton in all modes, and for the losses of the line search. The loss
  must be a `MeanLoss`: its sums over chunks add up.

  Args:
    body_fn: (params, batch) -> hidden activations [B, L, D].
    head_path: Keys in nested dicts that lead to the head. The head is a matrix,
      or the subtree that `head_fn` takes. "a/b" is ("a", "b"). With tied
      embeddings it is the path of the embedding.
    num_chunks: Parts that the length L is cut into, >= 1.
    head_fn: (head, hidden [B, C, D]) -> logits [B, C, V], for each position by
      itself. Soft caps and masks of the vocabulary go here. None multiplies by
      the matrix, with a float32 result.
    transpose: True: the matrix is [V, D], as an embedding is. False: the matrix
      is [D, V]. True needs `head_fn=None`.

  Returns:
    The adapter. It can also be called as a plain model.

  Raises:
    ValueError: For `num_chunks` < 1, or for `transpose=True` with a `head_fn`.
  """
  checks.count("num_chunks", num_chunks)
  if head_fn is not None and transpose:
    raise ValueError(
      "transpose=True is for the plain product; head_fn takes the head as it "
      "is: transpose there."
    )
  if isinstance(head_path, str):
    head_path = head_path.split("/")
  equation = "bld,vd->blv" if transpose else "bld,dv->blv"

  def multiply(matrix, hidden):
    return jnp.einsum(
      equation,
      hidden,
      matrix.astype(hidden.dtype),
      preferred_element_type=work_dtype(hidden),
    )

  return ChunkedHead(body_fn, head_fn or multiply, tuple(head_path), num_chunks)


def _cut(x, num_chunks):
  b, l = x.shape[:2]
  c = -(-l // num_chunks)
  num_chunks = -(-l // c)  # None of zeros only.
  padding = [(0, 0), (0, num_chunks * c - l)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, padding).reshape(b, num_chunks, c, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _put(tree, path, value):
  if not path:
    return value
  new = dict(tree) if isinstance(tree, dict) else tree.copy()
  new[path[0]] = _put(tree[path[0]], path[1:], value)
  return new
