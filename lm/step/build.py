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
from ..model import product_slots, seams
from ..model.transformer import Transformer
from ..objectives import table as objectives
from ..weights import rounded
from ..weights import table as weights
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
    mesh: Used instead of a mesh over `devices`. A `jax.sharding.AbstractMesh`
      tells where everything would lie (`lm/step/memory.py`), and cannot run.

  Raises:
    ConfigError: If there is no such objective, or no such weights.
    ValueError: If the mesh does not fit the devices.
  """
  if found := [*objectives.problems(config), *weights.problems(config)]:
    raise ConfigError("\n".join(found))
  m = config.mesh
  if mesh is None:
    mesh = meshes.make_mesh(config.mesh.sizes, devices)
  model, specs = (
    Transformer(config.model),
    param_table.param_specs(config.model),
  )
  trained = weights.trained_specs(config, specs)
  placement = sharding.placement(mesh, trained, config.model.N, m.rules)
  lies = sharding.param_shardings(mesh, specs, m.rules)
  by_path = param_table.by_path(specs), param_table.by_path(lies)
  for _, phase in load.product_phases(config):
    product_slots.check_blocks(phase.model, *by_path)
  quantizers = None
  if config.quant.method != "none":
    quantizers = rounded.quantizers(config, specs, lies)

  def make_tx(seen: Callable[[Any], Any] | None) -> Any:
    made = methods.of(config).make
    more = {} if seen is None else {"seen": seen}
    tx = made(config, model, trained, placement, quantizers, **more)
    return _averaged(config, tx)

  tx = make_tx(None)
  params, frozen = jax.eval_shape(
    lambda key: weights.init(config, specs, key), jax.random.key(0)
  )
  abstract = jax.eval_shape(
    lambda params, frozen: state.init_state(params, tx, frozen), params, frozen
  )
  shardings = sharding.state_shardings(
    mesh,
    trained,
    abstract,
    placement,
    m.rules,
    lies if weights.freezes(config) else (),
  )
  return Parts(
    config=config,
    mesh=mesh,
    model=model,
    specs=specs,
    quantizers=quantizers,
    make_tx=make_tx,
    tx=tx,
    abstract_state=abstract,
    shardings=shardings,
    weight_shardings=lies,
    batch_sharding=objectives.Batch(
      meshes.batch_sharding(mesh, leading=1),
      meshes.batch_sharding(mesh, leading=1, trailing=0),
    ),
  )


def problems(config: Config) -> list[str]:
  """What the entries of all seams find wrong with a configuration.

  Args:
    config: Every value within its own bounds (`constraints.bounds`).
  """
  found = [*seams.problems(config.model), *objectives.problems(config)]
  for _, later in load.product_phases(config)[1:]:
    found += seams.problems(later.model)
  found += weights.problems(config)
  if not found:
    found += rounded.slot_problems(config)
  found += methods.of(config).problems(config)
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
    params, frozen = weights.init(parts.config, parts.specs, key)
    return state.init_state(params, parts.tx, frozen)

  key = jax.random.key(parts.config.seed)
  # Runs once: LLVM's later passes take a second or more, for the same bits.
  options = {"xla_backend_optimization_level": 1}
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(
    init,
    out_shardings=parts.shardings,
    compiler_options=options if on_cpu else None,
  )(key)


def compile_step(
  parts: Parts,
  probing: update.Probing = update.Probing(),  # noqa: B008
) -> Callable[..., tuple[state.TrainState, update.Metrics]]:
  """Compiles `train_step(state, buffer, n)`; the state is donated.

  Args:
    parts: From `build`; the mesh must be entered (`jax.set_mesh`).
    probing: What the metrics hold besides.
  """
  train_step = _make_step(parts, probing)
  replicated = NamedSharding(parts.mesh, jax.sharding.PartitionSpec())
  jitted = jax.jit(
    train_step,
    donate_argnums=0,
    in_shardings=(parts.shardings, parts.batch_sharding, replicated),
    out_shardings=(parts.shardings, replicated),
  )
  buffer = objectives.Batch(
    jax.ShapeDtypeStruct(parts.buffer_shape, jnp.int32),
    jax.ShapeDtypeStruct(parts.buffer_shape[:2], jnp.int32),
  )
  count = jax.ShapeDtypeStruct((), jnp.int32)
  return jitted.lower(parts.abstract_state, buffer, count).compile()


def _make_step(parts: Parts, probing: update.Probing) -> methods.TrainStep:
  """The update of the run's method, not yet compiled."""
  method = methods.of(parts.config)
  update = method.make_update(parts, probing)

  def train_step(state, buffer, n):
    new, metrics = update(state, buffer, n)
    return new, metrics | method.metrics(new.opt_state)

  return train_step


def put_buffer(
  parts: Parts, rows: np.ndarray, index: np.ndarray | None = None
) -> objectives.Batch:
  """The buffer on the devices, from the rows that this process holds.

  Args:
    parts: Of the run.
    rows: int32 [microbatches, rows of this process, L + 1].
    index: int32 [microbatches, rows of this process], the number of each row in
      the stream; None counts from 0.
  """
  shape = parts.buffer_shape
  lies = parts.batch_sharding
  if index is None:
    first, end = meshes.row_range(lies.tokens, shape)
    index = np.arange(shape[0])[:, None] * shape[1] + np.arange(first, end)
  return objectives.Batch(
    meshes.put_rows(lies.tokens, rows, shape),
    meshes.put_rows(lies.index, index.astype(np.int32), shape[:2]),
  )


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
