"""W_out act(W_in x), or W_out (act(W_gate x) * W_in x) with a gate."""

import typing
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ...config.names import nearest
from ...config.schema import ModelConfig
from ..mesh import constrain
from ..param_spec import ParamSpec, Tree, init_std
from ..products import Context


class Activation(typing.NamedTuple):
  """A nonlinearity, of the gate if there is one."""

  function: Callable[[jax.Array], jax.Array]
  gated: bool = False


ACTIVATIONS = {  # By `config.model.mlp`.
  "gelu": Activation(jax.nn.gelu),  # The tanh form.
  "swiglu": Activation(jax.nn.silu, gated=True),
  "relu2": Activation(lambda x: jnp.square(jax.nn.relu(x))),
}


def specs(cfg: ModelConfig, layer: int) -> Tree:
  """The two or, with a gate, three matrices of a layer."""
  d, f = cfg.D, cfg.F
  std, std_out = init_std(cfg, d), init_std(cfg, f, layer)
  into = ParamSpec((d, f), ("embed", "mlp"), "hidden", (0,), std)
  out = ParamSpec((f, d), ("mlp", "embed"), "hidden", (0,), std_out)
  gate = {"gate": into} if ACTIVATIONS[cfg.mlp].gated else {}
  return {"in": into, **gate, "out": out}


def apply(
  w: Tree, x_BLD: jax.Array, context: Context
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """What is added to the stream; no sums."""

  def project(name):
    y_BLF = context.contract(f"ffn.{name}", "bld,df->blf", x_BLD, w[name])
    y_BLF = checkpoint_name(y_BLF, f"mlp_{name}")
    return constrain(y_BLF, ("batch", "seq", "act_mlp"))

  activation = ACTIVATIONS[context.cfg.mlp]
  if activation.gated:
    gate_BLF, hidden_BLF = project("gate"), project("in")
    hidden_BLF = activation.function(gate_BLF) * hidden_BLF
  else:
    hidden_BLF = activation.function(project("in"))
  y_BLD = context.contract("ffn.out", "blf,fd->bld", hidden_BLF, w["out"])
  return y_BLD, {}


def weights(cfg: ModelConfig) -> tuple[int, int]:
  """Entries of a layer's matrices; a token meets all of them."""
  count = (3 if ACTIVATIONS[cfg.mlp].gated else 2) * cfg.D * cfg.F
  return count, count


def problems(cfg: ModelConfig) -> Iterator[str]:
  """An unknown nonlinearity."""
  if cfg.mlp not in ACTIVATIONS:
    yield (
      f"config.model.mlp={cfg.mlp!r} is not one of {', '.join(ACTIVATIONS)}."
      f"{nearest(cfg.mlp, ACTIVATIONS)}"
    )
