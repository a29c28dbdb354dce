"""From a configuration to the parts of a run, all built, nothing started."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

import optim

from ..config import load, ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..data import layout
from ..model import mesh as meshes
from ..model import params as param_table
from ..model.transformer import Transformer
from ..weights import rounded
from . import methods, sharding, state, update
from .parts import Parts


def find_data(config: Config) -> dict[str, layout.Prepared]:
  """The prepared corpora that a configuration names, trained on or evaluated.

  Raises:
    ValueError: If one is not prepared, or they disagree on the tokenizer.
  """
  names = dict.fromkeys(
    [c for c, _ in config.data.mixture] + [*config.eval.sets]
  )
  found = {name: layout.find(config.data, name) for name in names}
  tokenizers = {p.meta.tokenizer_hash for p in found.values()}
  if len(tokenizers) > 1:
    raise ValueError(
      f"The corpora {', '.join(found)} below config.data.root="
      f"{config.data.root} were prepared with different tokenizers; delete "
      "that folder and prepare them again."
    )
  return found


def resolve(config: Config, data: dict[str, layout.Prepared]) -> Config:
  """`config.resolve` with the facts of the prepared data and of jax."""
  meta = next(iter(data.values())).meta
  return load.resolve(
    config,
    vocab_size=meta.vocab_size,
    eos_id=meta.eos_id,
    pad_id=meta.pad_id,
    platform=jax.default_backend(),
  )


def build(
  config: Config,
  devices: Sequence[jax.Device] | None = None,
  mesh: Any = None,
) -> Parts:
  """Builds the parts of a run.

  Args:
    config: Resolved.
    devices: Of the mesh; None for all.
    mesh: Instead of one over `devices`. A `jax.sharding.AbstractMesh` is enough
      to see where everything would lie (`lm/step/memory.py`), not to run.

  Raises:
    ValueError: If the mesh does not fit the devices.
  """
  m = config.mesh
  if mesh is None:
    mesh = meshes.make_mesh((m.data, m.fsdp, m.tensor), devices)
  model, specs = (
    Transformer(config.model),
    param_table.param_specs(config.model),
  )
  placement = sharding.placement(mesh, specs, config.model.N, m.rules)
  quantizers = None
  if config.quant.method != "none":
    lies = sharding.param_shardings(mesh, specs, m.rules)
    quantizers = rounded.quantizers(config, specs, lies)
  tx = methods.of(config).make(config, model, specs, placement, quantizers)
  tx = _averaged(config, tx)
  params = jax.eval_shape(
    lambda key: param_table.init_params(config.model, key), jax.random.key(0)
  )
  abstract = jax.eval_shape(lambda params: state.init_state(params, tx), params)
  shardings = sharding.state_shardings(
    mesh, specs, abstract, placement, m.rules
  )
  return Parts(
    config=config,
    mesh=mesh,
    model=model,
    specs=specs,
    quantizers=quantizers,
    tx=tx,
    abstract_state=abstract,
    shardings=shardings,
    batch_sharding=meshes.batch_sharding(mesh, leading=1),
  )


def problems(config: Config) -> list[str]:
  """What the entries of all seams find wrong with a configuration.

  Args:
    config: Every value within its own bounds (`constraints.bounds`).
  """
  found = list(methods.of(config).problems(config))
  try:
    _averaged(config, optax.with_extra_args_support(optax.identity()))
  except ValueError as error:
    names = config.optim.averages
    found.append(f"config.optim.averages={names!r}: {error}")
  return found


def _averaged(
  config: Config, tx: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
  """The optimiser with the averages of `config.optim.averages`, if any."""
  if not config.optim.averages:
    return tx
  method = methods.of(config)
  return optim.average_weights(
    tx,
    names=config.optim.averages,
    num_steps=-(-ramp.num_steps(config) // method.updates_per_step(config)),
    has_updated=method.has_updated,
  )


def init_state(parts: Parts) -> state.TrainState:
  """The state before the first update, made where it lies."""

  def init(key):
    params = param_table.init_params(parts.config.model, key)
    return state.init_state(params, parts.tx)

  key = jax.random.key(parts.config.seed)
  # Run once: LLVM's later passes cost a second and more, for the same bits.
  options = {"xla_backend_optimization_level": 1}
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(
    init,
    out_shardings=parts.shardings,
    compiler_options=options if on_cpu else None,
  )(key)


def compile_step(
  parts: Parts, *, details: bool = False
) -> Callable[..., tuple[state.TrainState, update.Metrics]]:
  """Compiles `train_step(state, buffer, n)`; the state is donated.

  Args:
    parts: From `build`; the mesh must be entered (`jax.set_mesh`).
    details: Whether the metrics hold the update's norm and statistics of
      each leaf.
  """
  train_step = _make_step(parts, details)
  replicated = NamedSharding(parts.mesh, jax.sharding.PartitionSpec())
  jitted = jax.jit(
    train_step,
    donate_argnums=0,
    in_shardings=(parts.shardings, parts.batch_sharding, replicated),
    out_shardings=(parts.shardings, replicated),
  )
  buffer = jax.ShapeDtypeStruct(parts.buffer_shape, jnp.int32)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  return jitted.lower(parts.abstract_state, buffer, count).compile()


def _make_step(parts: Parts, details: bool) -> methods.TrainStep:
  """The update of the run's method, not yet compiled."""
  method = methods.of(parts.config)
  update = method.make_update(parts, details)

  def train_step(state, buffer, n):
    new, metrics = update(state, buffer, n)
    return new, metrics | method.metrics(new.opt_state)

  return train_step


def put_buffer(parts: Parts, rows: np.ndarray) -> jax.Array:
  """The buffer of one update, from this process's rows of it.

  Args:
    parts: From `build`.
    rows: [microbatches, rows of this process, L + 1].
  """
  return meshes.put_rows(parts.batch_sharding, rows, parts.buffer_shape)


def check_rows(config: Config, mesh: Mesh) -> None:
  """Checks that the rows of a pass divide over the mesh.

  Raises:
    ConfigError: If they do not.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = config.microbatch_size
  if rows % ways:
    raise ConfigError(
      f"{rows} rows a pass (config.train.microbatch_size, or "
      f"config.data.batch_size={config.data.batch_size}) do not divide over "
      f"{ways} devices (data x fsdp); e.g. {_rows_that_divide(config, ways)}."
    )


def _rows_that_divide(config: Config, ways: int) -> str:
  """Flags that make the rows of a pass a multiple of `ways`."""
  batch, rows = config.data.batch_size, config.microbatch_size
  fits = [n for n in range(ways, batch, ways) if batch % n == 0]
  close = min(fits, key=lambda n: abs(n - rows), default=0)
  train = dataclasses.replace(config.train, microbatch_size=close)
  if close and not problems(dataclasses.replace(config, train=train)):
    return f"--config.train.microbatch_size={close}"
  wider = -(-rows // ways) * ways
  flags = f"--config.data.batch_size={batch // rows * wider}"
  if config.train.microbatch_size:
    flags += f" --config.train.microbatch_size={wider}"
  return flags
