"""From a configuration to the parts of a run, all built, nothing started."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ..config import load, ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..data import layout
from ..methods import newton, optimizer, schedule
from ..model import mesh as meshes
from ..model import params as param_table
from ..model.transformer import Transformer
from ..objectives.next_token import loss_sums
from ..weights import rounded
from . import newton_update, sharding, state, update


class Parts(NamedTuple):
  """What a run is made of.

  Attributes:
    config: Resolved.
    mesh: The devices, or an abstract one (`build`).
    model: The Flax module.
    specs: Tree of `ParamSpec`, like the parameters.
    quantizers: How each parameter is rounded, None for those that are not;
      None if `config.quant` has no method.
    tx: The optimiser.
    learning_rate: Schedule of the update count.
    abstract_state: Shapes of the training state.
    shardings: Of its leaves.
    batch_sharding: Of the buffer [n, B, L + 1].
  """

  config: Config
  mesh: Mesh
  model: Transformer
  specs: Any
  quantizers: Any
  tx: optax.GradientTransformationExtraArgs
  learning_rate: optax.Schedule
  abstract_state: state.TrainState
  shardings: state.TrainState
  batch_sharding: NamedSharding

  @property
  def buffer_shape(self) -> tuple[int, int, int]:
    """[microbatches at most, rows of each, L + 1]."""
    rows = self.config.microbatch_size
    most = max(phase.rows for phase in ramp.of_config(self.config))
    count = most // rows
    return count, rows, self.config.data.seq_length + 1


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
  inner = newton.chosen(config)
  learning_rate = (lambda _: 1.0) if inner else schedule.learning_rate(config)
  placement = sharding.placement(mesh, specs, config.model.N, m.rules)
  quantizers = None
  if config.quant.method != "none":
    lies = sharding.param_shardings(mesh, specs, m.rules)
    quantizers = rounded.quantizers(config, specs, lies)
  tx = optimizer.make(config, learning_rate, specs, placement, quantizers)

  params = jax.eval_shape(
    lambda key: param_table.init_params(config.model, key), jax.random.key(0)
  )
  optimizer.check(config, tx, params)
  if newton.chosen(config):
    tx = newton.make(config, model, tx)
  abstract = jax.eval_shape(
    lambda params: state.init_state(params, tx, config.optim.ema), params
  )
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
    learning_rate=learning_rate,
    abstract_state=abstract,
    shardings=shardings,
    batch_sharding=meshes.batch_sharding(mesh, leading=1),
  )


def init_state(parts: Parts) -> state.TrainState:
  """The state before the first update, made where it lies."""

  def init(key):
    params = param_table.init_params(parts.config.model, key)
    return state.init_state(params, parts.tx, parts.config.optim.ema)

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


def _make_step(parts: Parts, details: bool) -> Callable[..., Any]:
  """The update of the run's method, not yet compiled."""
  config = parts.config
  if config.optim.name == newton.OUTER:
    return newton_update.make_outer_step(config, parts.tx)
  if config.optim.name == newton.MICRO:
    return newton_update.make_micro_step(config, parts.model, parts.tx)

  places = jax.tree.map(lambda lie: lie.spec, parts.shardings.params)

  def constrain(tree):
    return jax.lax.with_sharding_constraint(tree, places)

  return update.make_train_step(
    lambda params, tokens: loss_sums(parts.model, params, tokens),
    parts.tx,
    parts.learning_rate,
    update.StepConfig(
      clip_norm=config.optim.clip_norm,
      ema=config.optim.ema,
      z_loss=config.model.z_loss,
      pad_id=config.model.pad_id,
      details=details,
    ),
    constrain if parts.mesh.size > 1 else lambda tree: tree,
    optimizer.metrics,
    rounded.rounded_weights(config, parts.quantizers),
    rounded.sampled_curvature(config, parts.model),
  )


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
  if fits and not newton.chosen(config):
    close = min(fits, key=lambda n: abs(n - rows))
    return f"--config.train.microbatch_size={close}"
  wider = -(-rows // ways) * ways
  flags = f"--config.data.batch_size={batch // rows * wider}"
  if config.train.microbatch_size:
    flags += f" --config.train.microbatch_size={wider}"
  return flags
