"""One table of facts about every parameter, and what follows from it.

`param_specs(cfg)` is a tree like the parameters whose leaves say what each
axis is, which axes are summed over, what the leaf is for and how widely it is
initialised. Initial values, parameter counts, the weight-decay mask, the
sharding (`mesh.py`) and the matrix layout for optimisers are functions of that
table; nothing is ever looked up by the spelling of a path.

Letters: D model width, H query heads, G key-value heads, K = D / H channels of
a head, F feed-forward width, N layers, V vocabulary, L positions.
"""

import dataclasses
import typing
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..config.schema import ModelConfig
from .ffn import table as feed_forwards
from .mixers import table as mixers
from .param_spec import ParamSpec, Tree, gain_and_bias, init_std

BLOCKS = "blocks"  # The subtree that exists once a layer.
STACKS = ("layers", "experts")  # Axes along which a leaf is a stack.


class Counts(typing.NamedTuple):
  """Numbers of parameters; `body` is the "non-embedding" count."""

  body: int
  embedding: int  # Tokens and, where they are learned, positions.
  head: int  # 0 when it is the transposed embedding.
  total: int
  active: int  # Of the total, those that one token meets.


class MatrixLayout(typing.NamedTuple):
  """Axes of a parameter read as a stack of matrices [stack, inputs, outputs].

  A gain or bias has no inputs: it is a stack of vectors.
  """

  stack: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


# --- The table ---------------------------------------------------------------


def param_specs(cfg: ModelConfig) -> Tree:
  """The table for `cfg`, in the layout that `cfg.layers` asks for.

  Args:
    cfg: Model section of the configuration.

  Returns:
    A tree of `ParamSpec` with the structure of the parameters. With
    `cfg.layers == "scan"` the leaves under "blocks" have a leading axis of
    size N; otherwise "blocks" has the children "0", ..., "N-1".
  """
  specs = {
    "embed": embed_specs(cfg),
    BLOCKS: _blocks(cfg),
    "final_norm": norm_specs(cfg),
  }
  if cfg.positions == "learned":
    specs["positions"] = position_specs(cfg)
  if not cfg.tied:
    specs["head"] = head_specs(cfg)
  return specs


def embed_specs(cfg: ModelConfig) -> Tree:
  """The token embedding; also the head when `cfg.tied`."""
  std = cfg.embed_init_std or init_std(cfg, cfg.D)
  return {
    "table": ParamSpec((cfg.V, cfg.D), ("vocab", "embed"), "input", (0,), std)
  }


def position_specs(cfg: ModelConfig) -> Tree:
  """The learned positions."""
  shape, axes = (cfg.L, cfg.D), ("positions", "embed")
  return {"table": ParamSpec(shape, axes, "input", (0,), init_std(cfg, cfg.D))}


def head_specs(cfg: ModelConfig) -> Tree:
  """The output matrix of an untied model."""
  shape, axes = (cfg.D, cfg.V), ("embed", "vocab")
  return {
    "kernel": ParamSpec(shape, axes, "output", (0,), init_std(cfg, cfg.D))
  }


def norm_specs(cfg: ModelConfig) -> Tree:
  """A norm over the model width."""
  bias = cfg.norm_bias and cfg.norm == "layernorm"
  return gain_and_bias((cfg.D,), ("gain",), bias)


def block_specs(cfg: ModelConfig, layer: int = 0) -> Tree:
  """One layer: two norms, the mixer and the feed-forward block.

  The names of both parts do not depend on the entry, so that an entry finds the
  parameters of another entry with the same `specs`.
  """
  return {
    "norm1": norm_specs(cfg),
    "attention": mixers.of(cfg).specs(cfg, layer),
    "norm2": norm_specs(cfg),
    "mlp": feed_forwards.of(cfg).specs(cfg, layer),
  }


def _blocks(cfg):
  layers = [block_specs(cfg, layer) for layer in range(cfg.N)]
  if cfg.layers == "unroll":
    return {str(layer): specs for layer, specs in enumerate(layers)}

  def stack(*specs):
    first = specs[0]
    return ParamSpec(
      (cfg.N, *first.shape),
      ("layers", *first.axes),
      first.role,
      tuple(axis + 1 for axis in first.fan_in),
      tuple(float(s.init_std) for s in specs),
    )

  return jax.tree.map(stack, *layers)


# --- Initial values ----------------------------------------------------------


def init_params(cfg: ModelConfig, key: jax.Array) -> Tree:
  """Initial parameters in float32, the same bits in both layouts.

  The key of a leaf is `key` with a hash of the leaf's path folded in, then the
  layer. So a new parameter changes no other one, and the values do not depend
  on the mesh. One `vmap` draws all layers in both layouts, so compile time does
  not grow with depth.

  Args:
    cfg: Model section of the configuration.
    key: From `jax.random.key`.

  Returns:
    The parameters, in the layout of `param_specs(cfg)`.
  """
  stacked = param_specs(dataclasses.replace(cfg, layers="scan"))
  return to_layout(init_leaves(stacked, key, cfg.init_cut), cfg.layers)


def init_leaves(specs: Tree, key: jax.Array, cut: float) -> Tree:
  """Initial values of the leaves of a table, each by its path.

  Args:
    specs: Tree of `ParamSpec`: nested dicts.
    key: From `jax.random.key`.
    cut: `config.model.init_cut`.
  """

  def leaf(path, spec):
    name = "/".join(entry.key for entry in path)
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return _draw(spec, own, cut)

  return jax.tree_util.tree_map_with_path(leaf, specs)


def truncated_normal(
  key: jax.Array, shape: tuple[int, ...], std: jax.Array | float, cut: float
) -> jax.Array:
  """`std` times a standard normal conditioned on |x| <= `cut`.

  The result is *not* rescaled to have deviation `std` (OLMo's convention). Its
  deviation is 0.9866 `std` for a cut at 3, and 0.8796 `std` for one at 2.

  Args:
    key: From `jax.random.key`.
    shape: Of the result.
    std: Deviation of the normal before the cut.
    cut: In deviations; 0 does not truncate.

  Returns:
    A float32 array.
  """
  if not cut:
    return std * jax.random.normal(key, shape, jnp.float32)
  return std * jax.random.truncated_normal(key, -cut, cut, shape, jnp.float32)


def _draw(spec, key, cut):
  if spec.role == "gain":
    return jnp.ones(spec.shape, jnp.float32)
  if spec.role == "bias":
    return jnp.zeros(spec.shape, jnp.float32)
  if not isinstance(spec.init_std, tuple):
    return truncated_normal(key, spec.shape, spec.init_std, cut)

  def draw_layer(layer, std):
    layer_key = jax.random.fold_in(key, layer)
    return truncated_normal(layer_key, spec.shape[1:], std, cut)

  return jax.vmap(draw_layer)(
    jnp.arange(spec.shape[0]), jnp.asarray(spec.init_std, jnp.float32)
  )


# --- What follows from the table ---------------------------------------------


def count_params(cfg: ModelConfig) -> Counts:
  """Numbers of parameters of a model, without making any."""

  def size(tree):
    return sum(spec.size for spec in jax.tree.leaves(tree))

  specs = param_specs(cfg)
  embedding = size([specs["embed"], specs.get("positions", {})])
  head = size(specs.get("head", {}))
  body = size([specs[BLOCKS], specs["final_norm"]])
  total = active = body + embedding + head
  for all_of_layer, met in (
    mixers.of(cfg).weights(cfg),
    feed_forwards.of(cfg).weights(cfg),
  ):
    active -= cfg.N * (all_of_layer - met)
  return Counts(body, embedding, head, total, active)


def by_path(tree: Tree) -> dict[str, Any]:
  """{path: leaf}, e.g. "blocks/0/mlp/in", of parameters or of a state."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def abstract(specs: Tree) -> Tree:
  """Shapes and types of the parameters."""
  return jax.tree.map(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs
  )


def decay_mask(specs: Tree) -> Tree:
  """True for the parameters that decay: all but gains and biases."""
  return jax.tree.map(lambda spec: spec.role not in ("gain", "bias"), specs)


def matrix_layouts(specs: Tree) -> Tree:
  """A `MatrixLayout` for each parameter, for matrix optimisers."""

  def layout(spec):
    stack = tuple(i for i, name in enumerate(spec.axes) if name in STACKS)
    inner = (*stack, *spec.fan_in)
    outputs = tuple(i for i in range(len(spec.shape)) if i not in inner)
    return MatrixLayout(stack, spec.fan_in, outputs)

  return jax.tree.map(layout, specs)


def stack_layers(params: Tree) -> Tree:
  """From the unrolled layout ("blocks" has children "0", "1", ...) to stacked.

  Any tree with the structure of the parameters will do. A stacked tree is
  returned as it is.
  """
  if not is_unrolled(params):
    return params
  blocks = params[BLOCKS]
  layers = [blocks[str(layer)] for layer in range(len(blocks))]
  return params | {BLOCKS: jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def unstack_layers(params: Tree) -> Tree:
  """Inverse of `stack_layers`."""
  if is_unrolled(params):
    return params
  blocks = params[BLOCKS]
  num_layers = jax.tree.leaves(blocks)[0].shape[0]

  def select(layer):
    return jax.tree.map(lambda x: x[layer], blocks)

  return params | {BLOCKS: {str(i): select(i) for i in range(num_layers)}}


def is_unrolled(params: Tree) -> bool:
  """Whether "blocks" has one child a layer."""
  return "0" in params[BLOCKS]


def to_layout(params: Tree, layers: str) -> Tree:
  """`params` in the layout named `layers` (scan | unroll)."""
  convert: Callable = stack_layers if layers == "scan" else unstack_layers
  return convert(params)
