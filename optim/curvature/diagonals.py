r"""Diagonals of curvature matrices, exact or sampled.

Two conventions: `model_fn(params, batch) -> outputs`, and `loss_fn(outputs,
batch) -> scalar` is the mean over examples. With J the Jacobian of the outputs
and H the Hessian of the loss in the outputs, the generalised Gauss-Newton
matrix is G = J^T H J. For log-likelihoods of the exponential family (squared
error, cross-entropy of logits) G is the Fisher matrix, and H does not depend on
the labels. So labels drawn from the model give an unbiased estimate of G.

An estimator never forms a matrix of the size of the parameters squared. A
sampled estimator takes a key, and the same key gives the same estimate.

Dimension key: B examples, K outputs (all of a batch), V outputs an example.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..common import checks, meshes
from ..common.tree import upcast, zeros

Likelihood = Literal["categorical", "bernoulli", "normal"]
LIKELIHOODS = get_args(Likelihood)
# Entries of a Jacobian that is formed: half a gigabyte of float32.
MAX_JACOBIAN_SIZE = 2**27


def hutchinson_diagonal(
  product: Callable[[Any], Any],
  params: Any,
  key: jax.Array,
  *,
  num_probes: int = 1,
) -> Any:
  r"""Unbiased diagonal of any symmetric matrix A known by its products.

      diag(A) = E[v * (A v)],    v_i = +1 or -1 with equal chance

  The variance of entry i is sum_{j != i} A_ij^2 / num_probes. One probe is
  exact for a diagonal matrix.

  Args:
    product: v -> A v on trees like params: a Hessian or Gauss-Newton product.
    params: Any tree of floating-point arrays; only its shapes are used.
    key: Random key of the signs.
    num_probes: Number of products, one after the other, >= 1.

  Returns:
    A tree like params; float32, or float64 for float64 leaves. Entries may be
    negative even if A is positive.

  Raises:
    ValueError: If num_probes < 1, a leaf is not floating-point, or `product`
      returns another tree.

  References:
    Bekas et al., "An estimator for the diagonal of a matrix", 2007;
    Yao et al., "AdaHessian", 2020, https://arxiv.org/abs/2006.00719
  """
  checks.count("num_probes", num_probes)
  check_floating(params)
  made = jax.eval_shape(product, params)
  if _shapes(made) != _shapes(params):
    raise ValueError(
      f"product(v) must be a tree like params, {_shapes(params)}, but is "
      f"{_shapes(made)}. Return the product with v itself, e.g. "
      "jax.jvp(jax.grad(loss_fn), (params,), (v,))[1]."
    )
  leaves, treedef = jax.tree.flatten(params)

  def probe(total, key):
    keys = jax.random.split(key, max(len(leaves), 1))
    signs = [
      jax.random.rademacher(k, x.shape, x.dtype)
      for k, x in zip(keys, leaves, strict=False)
    ]
    v = meshes.placed(jax.tree.unflatten(treedef, signs), params)
    return jax.tree.map(lambda t, x, y: t + x * y, total, v, product(v)), None

  total = zeros(params)
  total, _ = jax.lax.scan(probe, total, jax.random.split(key, num_probes))
  return jax.tree.map(lambda x: x / num_probes, total)


def exact_ggn_diagonal(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  batch: Any,
) -> Any:
  r"""diag(J^T H J) without sampling, by forming J: for small problems.

      G_ii = sum_k J_ki (H J)_ki

  With K outputs of the batch and P parameters, the cost is min(K, P)
  derivatives of the model and memory for 2 K P numbers.

  Args:
    model_fn: (params, batch) -> outputs, any tree.
    loss_fn: (outputs, batch) -> scalar, any twice differentiable function. The
      function may couple examples.
    params: Any tree of floating-point arrays.
    batch: Any tree.

  Returns:
    A tree like params; float32, or float64 for float64 leaves.

  Raises:
    ValueError: If a leaf of params is not floating-point, if the loss is not a
      scalar, or if J would have more than 2^27 entries.
  """
  rows, scaled = ggn_rows(model_fn, loss_fn, params, batch)
  return jax.tree.map(lambda a, b: jnp.sum(a * b, axis=0), rows, scaled)


def gauss_newton_bartlett_diagonal(
  model_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  batch: Any,
  key: jax.Array,
  *,
  weights: jax.Array | None = None,
  likelihood: Likelihood = "categorical",
  num_draws: int = 1,
) -> Any:
  r"""Gauss-Newton-Bartlett: squares of a batch gradient with drawn labels.

      E[n g^2] = diag(G),    g = grad of mean_b -log p(y_b | z_b),  y_b ~ p(z_b)

  with n examples. The estimate is unbiased for the diagonal of the Gauss-Newton
  matrix of the weighted mean loss on this batch, whatever the data's labels
  are. It is no estimate of the diagonal of the Hessian. One draw costs one
  backward pass, as a gradient does. The standard deviation of one draw is about
  sqrt(2) times its mean.

  Args:
    model_fn: (params, batch) -> outputs [..., V], one example a row: logits of
      V classes, or for the other likelihoods V independent outputs.
    params: Any tree of floating-point arrays.
    batch: Any tree.
    key: Random key of the labels.
    weights: [...] >= 0, e.g. a mask of tokens. The loss is the mean with these
      weights. None: all weights are equal.
    likelihood: "categorical" (cross-entropy), "bernoulli" (logistic loss summed
      over V) or "normal" (half the squared error summed over V).
    num_draws: Independent draws to average, >= 1. All draws share one forward
      pass.

  Returns:
    A tree like params, >= 0; float32, or float64 for float64 leaves.

  Raises:
    ValueError: For an argument out of range, or for outputs or weights of
      another shape.

  References:
    Liu et al., "Sophia", 2023, https://arxiv.org/abs/2305.14342, algorithm 2
  """
  checks.count("num_draws", num_draws)
  checks.choice("likelihood", likelihood, LIKELIHOODS)
  pull = sampler(model_fn, params, batch, weights, likelihood)

  def draw(total, key):
    return jax.tree.map(lambda t, g: t + jnp.square(g), total, pull(key)), None

  total = zeros(params)
  total, _ = jax.lax.scan(draw, total, jax.random.split(key, num_draws))
  return jax.tree.map(lambda x: x / num_draws, total)


def sampled_fisher_diagonal(
  logits_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  batch: Any,
  key: jax.Array,
  *,
  weights: jax.Array | None = None,
  chunk_size: int = 1,
) -> Any:
  r"""Squares of each sequence's gradient with drawn labels, averaged.

      F = (1 / n) sum_b E[(sum_t g_bt)^2] = (1 / n) sum_bt E[g_bt^2]

  for sequences b of tokens t, n tokens in all. Given the data's tokens as
  context, the gradients of drawn labels are independent with mean zero, so the
  cross terms vanish. The estimate is unbiased for the diagonal of the Fisher
  matrix of the mean loss a token on this batch; for cross-entropy this is the
  Gauss-Newton matrix. It is no estimate of the diagonal of the Hessian, nor of
  the squares of gradients with the data's labels.

  The cost is one forward and one backward pass over the batch, and memory for
  `chunk_size` gradients. `gauss_newton_bartlett_diagonal` needs less memory,
  and has a variance larger by about the number of sequences.

  Args:
    logits_fn: (params, batch) -> logits [B, ..., V], for a batch of any B.
      Sequences must not depend on each other.
    params: Any tree of floating-point arrays.
    batch: A tree whose leaves all have the axis B first.
    key: Random key of the labels; each sequence gets a key of its own.
    weights: [B, ...] >= 0, e.g. a mask of tokens. None: all weights are equal.
    chunk_size: Sequences whose gradients are held at once; divides B.

  Returns:
    A tree like params, >= 0; float32, or float64 for float64 leaves.

  Raises:
    ValueError: For an argument out of range or of another shape.
  """
  checks.count("chunk_size", chunk_size)
  check_floating(params)
  size = _batch_size(batch)
  if size % chunk_size:
    fits = [n for n in range(1, size + 1) if size % n == 0]
    raise ValueError(
      f"chunk_size={chunk_size} does not divide the batch's {size} examples; "
      f"take one of {fits}."
    )
  shape = _example_shape(jax.eval_shape(logits_fn, params, batch), weights)
  weights = jnp.ones(shape) if weights is None else jnp.asarray(weights)
  share = weights / jnp.sum(weights)

  def one(example, share, key):
    single = jax.tree.map(lambda x: x[None], example)
    pull = sampler(logits_fn, params, single, share[None], "categorical", 1.0)
    return jax.tree.map(jnp.square, pull(key))

  def add(total, chunk):
    squares = jax.vmap(one)(*chunk)
    return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, squares), ()

  chunks = jax.tree.map(
    lambda x: jnp.reshape(x, (-1, chunk_size, *x.shape[1:])),
    (*meshes.unsplit((batch, share)), jax.random.split(key, size)),
  )
  total = zeros(params)
  return jax.lax.scan(add, total, chunks)[0]


def ggn_rows(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  batch: Any,
) -> tuple[Any, Any]:
  """J and H J, as trees like params whose leaves have the axis K first.

  G = sum_k a_k b_k^T over the rows a of J and b of H J, so any part of G can be
  computed. Arguments and errors are those of `exact_ggn_diagonal`.
  """
  check_floating(params)
  flat, unravel = ravel_pytree(meshes.replicated(upcast(params)))

  def tree_of(flat):
    return meshes.placed(unravel(flat), params)

  def raveled(outputs):
    return ravel_pytree(meshes.replicated(upcast(outputs)))

  def outputs_of(flat):
    return raveled(model_fn(tree_of(flat), batch))[0]

  def loss_and_outputs(params):
    outputs = model_fn(params, batch)
    return loss_fn(outputs, batch), outputs

  loss, outputs = jax.eval_shape(loss_and_outputs, params)
  if jax.tree.leaves(loss) != [loss] or loss.shape != ():
    raise ValueError(
      f"loss_fn(outputs, batch) must be a scalar, but is {_shapes(loss)}; "
      "return the mean over examples."
    )
  K, P = sum(math.prod(x.shape) for x in jax.tree.leaves(outputs)), flat.size
  if K * P > MAX_JACOBIAN_SIZE:
    raise ValueError(
      f"The Jacobian of {K} outputs for {P} parameters would have {K * P} "
      f"entries, more than {MAX_JACOBIAN_SIZE}. Take a smaller batch, or "
      "gauss_newton_bartlett_diagonal, which needs the memory of one gradient."
    )
  jacobian = jax.jacrev if K < P else jax.jacfwd
  rows_KP = jacobian(outputs_of)(flat).astype(flat.dtype)
  outputs = model_fn(params, batch)
  outputs_K, restore = raveled(outputs)

  def loss_of(z):
    return loss_fn(meshes.placed(restore(z), outputs), batch)

  gradient = jax.grad(loss_of)

  def times_hessian(u_K):
    u_K = u_K.astype(outputs_K.dtype)  # Outputs may be wider than params.
    return jax.jvp(gradient, (outputs_K,), (u_K,))[1].astype(flat.dtype)

  scaled_KP = jax.vmap(times_hessian, in_axes=1, out_axes=1)(rows_KP)
  return jax.vmap(tree_of)(rows_KP), jax.vmap(tree_of)(scaled_KP)


def check_floating(params: Any) -> None:
  """Raises unless all leaves are real floating-point arrays."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f"params{jax.tree_util.keystr(path)} has type {dtype or type(leaf)}; "
        "curvature needs floating-point arrays. Leave other leaves out of "
        "params, e.g. close model_fn over them."
      )


def sampler(model_fn, params, batch, weights, likelihood, total=None):
  """key -> gradient of sum_b sqrt(w_b / total) (-log p(y_b | z_b)), y_b drawn.

  The root makes the square unbiased for any weights: E[(sum_b r_b g_b)^2] =
  sum_b r_b^2 E[g_b^2]. `total` None is the sum of the weights.
  """
  check_floating(params)
  shape = _example_shape(jax.eval_shape(model_fn, params, batch), weights)
  if weights is None:
    root = 1 / math.sqrt(max(math.prod(shape), 1))
  else:
    total = jnp.sum(weights) if total is None else total
    root = jnp.sqrt(weights / total)[..., None]
  work = upcast(params)
  outputs, pull = jax.vjp(lambda p: upcast(model_fn(p, batch)), work)

  def sample(key):
    residual = meshes.placed(_residual(key, outputs, likelihood), outputs)
    return pull((root * residual).astype(outputs.dtype))[0]

  return sample


def _residual(key, outputs, likelihood):
  """d -log p(y | z) / d z for labels y drawn from the model."""
  if likelihood == "normal":
    return jax.random.normal(key, outputs.shape, outputs.dtype)
  if likelihood == "bernoulli":
    p = jax.nn.sigmoid(outputs)
    return p - jax.random.bernoulli(key, p)
  labels = jax.random.categorical(key, outputs)
  return jax.nn.softmax(outputs) - jax.nn.one_hot(labels, outputs.shape[-1])


def _example_shape(outputs, weights) -> tuple[int, ...]:
  """Shape of the examples of one array of outputs; checks the weights."""
  if not hasattr(outputs, "shape") or outputs.ndim < 1:
    raise ValueError(
      f"model_fn(params, batch) must be one array [..., V], but is "
      f"{_shapes(outputs)}; V is the axis of one example's outputs."
    )
  shape = outputs.shape[:-1]
  if weights is not None and jnp.shape(weights) != shape:
    raise ValueError(
      f"weights has shape {jnp.shape(weights)}, but the outputs "
      f"{outputs.shape}; give a weight to each example, shape {shape}."
    )
  return shape


def _batch_size(batch) -> int:
  sizes = {
    jax.tree_util.keystr(path): jnp.shape(leaf)[:1]
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]
  }
  if len(set(sizes.values())) != 1 or () in sizes.values():
    raise ValueError(
      f"The leaves of batch have first axes {sizes}; all must be the axis of "
      "the sequences, of one length. Close logits_fn over anything else."
    )
  return next(iter(sizes.values()))[0]


def _shapes(tree):
  return jax.tree.map(lambda x: tuple(jnp.shape(x)), tree)
