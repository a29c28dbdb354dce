"""From `config.gauss_newton` to the transform, its model and its loss.

With `config.optim.name` "gauss_newton" an update is an outer step, and a batch
is N + M microbatches: N to solve on, M for the line search. With
"gauss_newton_microsteps" an update is one inner step or one batch of the line
search, and a batch is one microbatch. Microsteps are for N too large to hold,
and for saving within an outer step. `config.optim.kwargs` are arguments of the
inner optimiser.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

import optim

from ..config import load, ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..model import params as param_table
from ..model import product_slots
from ..model.mesh import constrain
from ..model.transformer import Transformer
from ..objectives import sums
from ..objectives import table as objectives
from . import optimizer, schedule

OUTER, MICRO = "gauss_newton", "gauss_newton_microsteps"


def num_search_batches(config: Config) -> int:
  """M."""
  g = config.gauss_newton
  if g.line_search == "none":
    return 0
  return g.search_batches or max(1, g.inner_steps // 4)


def problems(config: Config) -> list[str]:
  """What is wrong with the configuration of Gauss-Newton."""
  found = optimizer.problems(config, _inner(config), tables=True)
  return [*_own_problems(config), *_product_problems(config), *found]


def _product_problems(config: Config) -> Iterator[str]:
  """Rounding a gradient has no forward mode, which the products need."""
  for _, phase in load.product_phases(config):
    m, p = phase.model, config.product
    if m.product == "slots" and product_slots.rounds_gradients(m):
      recipes = ", ".join(product_slots.forward_recipes())
      yield (
        f"config.product.recipe={p.recipe!r} (overrides={p.overrides}, "
        f"switch_at={p.switch_at}) rounds the gradients of products, which "
        f"{config.optim.name} differentiates in forward mode; take one of "
        f"{recipes}, or another config.optim.name."
      )
      return


def _inner(config: Config) -> optimizer.Choice:
  """The inner optimiser; its learning rate is that of the solver."""
  name, kwargs = config.gauss_newton.optimizer, config.optim.kwargs
  named = "config.gauss_newton.optimizer"
  return optimizer.Choice(name, 1.0, kwargs, named=named)


def _own_problems(config: Config) -> Iterator[str]:
  g, t, batch = config.gauss_newton, config.train, config.data.batch_size
  count = g.inner_steps + num_search_batches(config)
  if config.optim.name == OUTER and batch != count * t.microbatch_size:
    rows = t.microbatch_size or max(1, batch // count)
    yield (
      f"config.data.batch_size={batch} must be {count} microbatches, "
      f"config.gauss_newton.inner_steps={g.inner_steps} and "
      f"{count - g.inner_steps} for the line search, of config.train."
      f"microbatch_size={t.microbatch_size} rows; e.g. "
      f"--config.train.microbatch_size={rows} "
      f"--config.data.batch_size={count * rows}."
    )
  if config.optim.name == MICRO and t.microbatch_size not in (0, batch):
    yield (
      f"config.train.microbatch_size={t.microbatch_size}: an update of {MICRO} "
      "is one microbatch; set it to 0."
    )
  if config.optim.name == MICRO and (
    g.line_search == "quadratic" or g.adapt_damping or g.cg_iters
  ):
    yield (
      f"{MICRO} has line_search 'grid' or 'none', and neither adapt_damping "
      f"nor cg_iters in config.gauss_newton; or take {OUTER}."
    )
  if g.scope == "layerwise" and config.model.layers != "unroll":
    yield (
      f"config.model.layers={config.model.layers!r} stacks the layers, but "
      "config.gauss_newton.scope='layerwise' needs each by itself: "
      "--config.model.layers=unroll."
    )
  if config.schedule.name != "constant":
    yield (
      f"config.schedule.name={config.schedule.name!r}: Gauss-Newton's rates "
      "follow config.gauss_newton.inner_schedule and config.schedule.warmup; "
      "set 'constant'."
    )
  if config.data.batch_schedule:
    yield (
      f"config.data.batch_schedule is not for {config.optim.name}: leave it ()."
    )
  if config.optim.by_role:
    yield f"config.optim.by_role is not for {config.optim.name}: leave it {{}}."
  if config.quant.method not in ("none", "ptq"):
    yield (
      f"config.quant.method={config.quant.method!r} is not for {OUTER}; take "
      "'ptq', or another optimiser."
    )
  elif g.scope == "layerwise" and config.train.weights != "identity":
    yield (
      f"config.train.weights={config.train.weights!r} trains other leaves than "
      "the layers of config.gauss_newton.scope='layerwise'; take 'full'."
    )
  yield from objectives.without_view(config, config.optim.name)


def make(
  config: Config,
  model: Transformer,
  specs: Any,
  placement: optim.Placement,
  quantizers: Any = None,
  seen: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The transform; see `Method.make` for the arguments.

  An update sees the model with the weights seen(params), as in `model_fn`. The
  state does not depend on `seen`.
  """
  del quantizers  # Only evaluations round.
  g: Any = config.gauss_newton
  inner = optimizer.make(
    config, _inner(config), lambda _: 1.0, specs, placement
  )
  shared: dict[str, Any] = dict(
    inner_steps=g.inner_steps,
    scope=scope(config),
    line_search=_line_search(config),
    damping=(
      optim.LevenbergMarquardt(g.damping) if g.adapt_damping else g.damping
    ),
    warm_start=g.warm_start,
    reset_inner_state=g.reset_inner_state,
    learning_rate=learning_rate(config),
    clip_norm=config.optim.clip_norm or None,
  )
  if config.optim.name == MICRO:
    return optim.gauss_newton_microsteps(inner, **shared)
  return optim.gauss_newton(
    model_fn(model, config, seen),
    loss_fn(config),
    inner,
    mode=g.mode,
    steps_per_batch=g.steps_per_batch,
    solver=optim.CG(g.cg_iters) if g.cg_iters else "first_order",
    **shared,
  )


def learning_rate(config: Config) -> Callable[[Any, Any], jax.Array]:
  """Rate of inner step i of outer step t."""
  g: Any = config.gauss_newton
  peak = config.optim.learning_rate
  return optim.inner_schedule(
    g.inner_schedule,
    peak,
    num_outer_steps(config),
    g.inner_steps * g.steps_per_batch,
    schedule.warmup_steps(config) / ramp.num_steps(config),  # A fraction of T.
    g.inner_warmup,
    peak * config.schedule.end_factor,
  )


def updates_per_outer_step(config: Config) -> int:
  """Of the trainer, for microsteps: N + M."""
  return config.gauss_newton.inner_steps + num_search_batches(config)


def own_state(opt_state: Any) -> Any:
  """The state of `make`'s transform, inside that of averages of the weights."""
  averaged = isinstance(opt_state, optim.AverageState)
  return opt_state.inner if averaged else opt_state


def num_outer_steps(config: Config) -> int:
  """T of the run, rounded up."""
  each = updates_per_outer_step(config) if config.optim.name == MICRO else 1
  return -(-ramp.num_steps(config) // each)


def model_fn(
  model: Transformer,
  config: Config,
  seen: Callable[[Any], Any] | None = None,
) -> Callable[[Any, Any], Any]:
  """(params, `Batch` [B]) -> logits, with the head in chunks if configured.

  Args:
    model: Of the run.
    config: Of the run.
    seen: params -> the weights that the model sees; None: params. With it the
      head is not cut, since its weights need not be a subtree of params.
  """
  objective = objectives.chosen(config)

  def hidden(weights: Any, batch: objectives.Batch) -> Any:
    view = objective.view(model.cfg, batch, objectives.TRAINING)
    hidden_BLD, aux = sums.view_hidden(model, weights, view)
    if found := [key for key in aux if key.endswith("/loss")]:
      raise ConfigError(
        f"config.optim.name={config.optim.name!r} minimises the loss of the "
        f"logits alone, but the model adds {', '.join(found)} "
        f"(config.model.ffn={model.cfg.ffn!r}, config.model.mixer="
        f"{model.cfg.mixer!r}); take another optimiser."
      )
    return hidden_BLD

  if seen is not None:

    def whole(params: Any, batch: objectives.Batch) -> Any:
      weights = seen(params)
      hidden_BLD = hidden(weights, batch)
      return model.apply({"params": weights}, hidden_BLD, method="logits")

    return whole

  specs = param_table.param_specs(model.cfg)

  def body(params: Any, batch: objectives.Batch) -> Any:
    if config.mesh.rules == "logical":
      # Where a weight is split, replicas reduce only the shards of its
      # gradient.
      wait = lambda s, p: constrain(p, s.axes)  # noqa: E731
      params = {k: jax.tree.map(wait, specs[k], p) for k, p in params.items()}
    return hidden(params, batch)

  name = "embed" if model.cfg.tied else "head"

  def head(part: Any, hidden_BLD: jax.Array) -> Any:
    return model.apply({"params": {name: part}}, hidden_BLD, method="logits")

  rows = config.train.microbatch_size or config.data.batch_size
  chunk = model.cfg.loss_chunk
  length = max(1, chunk // rows) if chunk else config.data.seq_length
  chunks = -(-config.data.seq_length // length)
  return optim.chunked_lm_head(body, name, chunks, head_fn=head)


def loss_fn(config: Config) -> optim.MeanLoss:
  """Cross-entropy over the targets of the objective's view, by its weights."""
  objective = objectives.chosen(config)

  def targets(batch):
    view = objective.view(config.model, batch, objectives.TRAINING)
    return view.targets_BL, view.weights_BL

  return optim.softmax_cross_entropy(targets, z_loss=config.model.z_loss)


def groups(params: Any) -> Any:
  """Labels of the layerwise scope: each block, what is before, what after."""
  before = [name for name in ("embed", "positions") if name in params]
  after = [name for name in ("final_norm", "head") if name in params]
  rules = {"embed": before, "block {}": "blocks/*", "head": after}
  return optim.path_groups(params, rules)


def scope(config: Config) -> Any:
  """As configured, for `optim`: "full", or what labels the parameters."""
  return groups if config.gauss_newton.scope == "layerwise" else "full"


def grid(config: Config) -> optim.LineSearch:
  """The line search over candidates, as configured."""
  g = config.gauss_newton
  return optim.LineSearch(
    num=g.num_alphas or None,
    include_zero=g.include_zero,
    num_batches=num_search_batches(config),
  )


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """What the state tells of its last outer step."""
  own = own_state(opt_state)
  state = getattr(own, "solver", own)
  info = state.info._asdict()
  losses = info.pop("losses")
  found = {f"gn/{key}": value for key, value in info.items()}
  found |= {f"gn/loss_{i}": loss for i, loss in enumerate(losses)}
  return found | {"gn/alpha": state.alpha, "gn/outer_steps": state.count}


def _line_search(config: Config) -> Any:
  kind = config.gauss_newton.line_search
  if kind == "none":
    return None
  if kind == "quadratic":
    return optim.QuadraticLineSearch(num_batches=num_search_batches(config))
  return grid(config)
