"""The coordinate check of the decoder: how far do a few updates move it?

The same configuration at several widths, with heads of one size. Each model is
trained for a few updates at the same rate. The root mean square of the change
of the logits, and of the activations before the head, must not depend on the
width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim
from optim.methods import scaling

from ..config.errors import ConfigError
from ..config.schema import Config
from ..data import stream
from ..methods import factories, optimizer, plain
from ..methods.optimizer import Choice
from ..model import params as param_table
from ..model.param_spec import ParamSpec
from ..model.transformer import Transformer
from ..objectives import table as objectives

MEASURED = ("hidden", "logits")
_ROLES = {"input": "embedding", "hidden": "hidden", "output": "head"}
_ENTRYWISE = "adam"  # The rule of what a matrix method leaves to Adam.


class Changes(NamedTuple):
  """RMS changes, float64 [widths, 2]: before the head, and of the logits."""

  sizes: np.ndarray

  @property
  def ratios(self) -> np.ndarray:
    """At the last width over the first, [2]."""
    return self.sizes[-1] / self.sizes[0]


def check(
  config: Config,
  rules: Sequence[str | None],
  *,
  widths: Sequence[int],
  seeds: int,
  steps: int,
) -> list[Changes]:
  """Trains the decoder at each width and measures how it changes.

  Initial values and rates follow the rule, if there is one. The rate is the
  configuration's from the first update on; decay and eps are left as they are.

  Args:
    config: Resolved, its data prepared.
    rules: Of `optim.multipliers`, for the matrices of the method; None: none.
    widths: D; the first is the base model's.
    seeds: Of weights and data order; squares are averaged.
    steps: Updates.

  Returns:
    The changes with each rule.

  Raises:
    ConfigError: If the configuration cannot have such widths.
    ValueError: If a transform refuses its arguments.
  """
  models = [at_width(config, width) for width in widths]
  first = range(config.seed, config.seed + seeds)
  sizes = [
    np.sqrt(np.mean([run(seed) for seed in first], axis=0))
    for run in (_runner(model, models[0], rules, steps) for model in models)
  ]
  return [Changes(np.array(rows)) for rows in zip(*sizes, strict=True)]


def rule_of(choice: Choice) -> str:
  """The rule of an optimiser, by its name and arguments.

  Raises:
    ConfigError: If the optimiser has none.
  """
  name, kwargs = choice.name.rpartition(".")[2], dict(choice.kwargs)
  rule = name
  if name in ("muon", "normuon"):
    if kwargs.get("consistent_rms") is not None:
      rule = "muon_consistent_rms"
    elif kwargs.get("scale") == "unit":
      rule = "muon_unit"
    elif kwargs.get("variance") == "entries":
      rule = "muon_entries"
  elif name == "shampoo" and kwargs.get("grafting", "adam") != "adam":
    rule = "shampoo_traced"
  if rule not in scaling.RULES:
    raise ConfigError(
      f"{choice.named}={choice.name!r} has no rule of its name; choose one for "
      f"the hidden matrices: --rule={'|'.join(scaling.RULES)}."
    )
  return rule


def choice_of(config: Config, role: str) -> Choice:
  """The optimiser of the parameters of a role."""
  every = plain.choices(config)
  return every.get(role, every[plain.REST])


def at_width(config: Config, width: int) -> Config:
  """The configuration at another width, its heads of the same size.

  Raises:
    ConfigError: If heads and feed-forward width would not be whole numbers, the
      model is tied, or it sees other weights than the trained ones.
  """
  m = config.model
  if config.quant.method != "none" or config.train.weights != "identity":
    raise ConfigError(
      f"config.quant.method={config.quant.method!r} and config.train.weights="
      f"{config.train.weights!r}: the check is of weights as they are trained; "
      "take 'none' and 'identity'."
    )
  if m.tied:
    raise ConfigError(
      "config.model.tied=True: a table that is embedding and head at once has "
      "two rules; take --config.model.tied=False."
    )
  sizes = {name: getattr(m, name) * width / m.D for name in "HGF"}
  broken = [name for name, size in sizes.items() if size != int(size)]
  if broken:
    raise ConfigError(
      f"--widths has {width}, where config.model.{broken[0]} would be "
      f"{sizes[broken[0]]:g}: take widths that keep heads of "
      f"config.model.D / config.model.H = {m.D / m.H:g} channels."
    )
  whole: Any = {name: int(size) for name, size in sizes.items()}
  return dataclasses.replace(
    config, model=dataclasses.replace(m, D=width, **whole)
  )


def multipliers(config: Config, base: Config, rule: str) -> Any:
  """The factors of every parameter, a tree like the parameters.

  Args:
    config: Of the model.
    base: Of the base model.
    rule: For the optimiser of the hidden matrices; those of other roles have
      their own. What a method of matrices does not take for one has Adam's.
  """
  own, start = (param_table.param_specs(c.model) for c in (config, base))
  ratio = config.model.D / base.model.D
  hidden = choice_of(config, "hidden")
  cuts, base_cuts = _cuts(config, own), _cuts(base, start)
  layouts = (param_table.matrix_layouts(specs) for specs in (own, start))

  def factors(path, spec, first, layout, base_layout):
    choice = choice_of(config, spec.role)
    name = rule if choice == hidden else rule_of(choice)
    uncut = _Cut((1, 1), (True, True), left_out=False)
    cut, base_cut = (
      found.get(jax.tree_util.keystr(path), uncut)
      for found in (cuts, base_cuts)
    )
    facts = optim.LeafFacts(
      _ROLES.get(spec.role, "vector"),
      *_fans(spec, layout),
      *_fans(first, base_layout),
      blocks=cut.blocks,
      base_blocks=base_cut.blocks,
      sides=cut.sides,
      width_ratio=ratio,
    )
    return optim.multipliers(facts, _ENTRYWISE if cut.left_out else name)

  return jax.tree_util.tree_map_with_path(factors, own, start, *layouts)


def _fans(spec: ParamSpec, layout: Any) -> tuple[int, int]:
  """Numbers of inputs and outputs."""
  sides = (layout.inputs, layout.outputs)
  fan_in, fan_out = (int(np.prod([spec.shape[a] for a in s])) for s in sides)
  return fan_in, fan_out


class _Cut(NamedTuple):
  """What a method of matrices makes of a leaf."""

  blocks: Any  # (int, int): of the inputs and of the outputs.
  sides: Any  # (bool, bool): whether the side has a factor.
  left_out: bool  # The leaf is no matrix.


def _cuts(config: Config, specs: Any) -> dict[str, _Cut]:
  """{path: cut} of the leaves of all methods of matrices."""
  found: dict[str, _Cut] = {}
  roles = {spec.role for spec in jax.tree.leaves(specs)}
  for choice in {choice_of(config, role) for role in roles}:
    mine = jax.tree.map(
      lambda spec, choice=choice: (
        spec if choice_of(config, spec.role) == choice else optax.MaskedNode()
      ),
      specs,
    )
    given = optimizer.arguments(config, choice, mine, optim.Placement())
    if "dimension_numbers" not in given:
      continue
    names = (optimizer.FACTORS, "one_sided", "block_size")
    options = {name: given[name] for name in names if name in given}
    if not factories.takes(choice.name, optimizer.FACTORS):
      options[optimizer.FACTORS] = 2**31  # Newton-Schulz has no long side.
    plan = optim.make_plan(
      param_table.abstract(mine), given["dimension_numbers"], **options
    )
    out = _Cut((1, 1), (False, False), left_out=True)
    found |= dict.fromkeys(plan.paths, out)
    found |= {
      piece.path: _Cut(piece.blocks, bucket.factored, left_out=False)
      for bucket in plan.buckets
      for piece in bucket.pieces
    }
  return found


def _runner(
  config: Config, base: Config, rules: Sequence[str | None], steps: int
) -> Callable[[int], list[Any]]:
  """Makes seed -> mean square changes [rules, 2] on rows not trained on."""
  model = Transformer(config.model)
  own, start = (param_table.param_specs(c.model) for c in (config, base))
  tx = _transform(config, own)
  update, measure = _update(config, model, tx), _measure(config, model)
  batch = config.data.batch_size
  begin = jax.jit(lambda key: param_table.init_params(config.model, key))

  def run(rule, params, rows):
    # Arrays: one program with the rule and without.
    rates = jax.tree.map(lambda _: jnp.ones(()), params)
    if rule is not None:
      factors = multipliers(config, base, rule)
      params = jax.tree.map(_started, params, own, start, factors)
      rates = jax.tree.map(lambda _, m: jnp.asarray(m.rate), params, factors)
    before, state = params, tx.init(params)
    for step in range(steps):
      tokens = rows.rows(step * batch, batch)
      params, state = update(params, state, rates, tokens)
    return measure(before, params, rows.rows(steps * batch, batch))

  def run_all(seed):
    params = begin(jax.random.key(seed))
    rows = stream.open_stream(config.data, seed)
    return [np.asarray(run(rule, params, rows)) for rule in rules]

  return run_all


def _started(
  w: jax.Array, spec: ParamSpec, first: ParamSpec, m: optim.Multipliers
) -> jax.Array:
  """A leaf with the base model's deviation times the factor of `init`."""
  if spec.init_std == 0:
    return w
  ratio = np.asarray(first.init_std) * m.init / np.asarray(spec.init_std)
  return w * ratio.reshape(ratio.shape + (1,) * (w.ndim - ratio.ndim))


def _transform(config: Config, specs: Any) -> Any:
  """The configuration's, at its rate from the first update on."""
  constant = dataclasses.replace(config.schedule, name="constant", warmup=0.0)
  config = dataclasses.replace(config, schedule=constant)
  tx = plain.make(config, Transformer(config.model), specs)
  return optax.with_extra_args_support(tx)


def _update(config: Config, model: Transformer, tx: Any) -> Callable[..., Any]:
  """(params, state, rates, tokens) -> (params, state), compiled."""
  objective = objectives.chosen(config)

  def loss(params, tokens):
    index = jnp.arange(len(tokens))
    found = objective.loss_sums(model, params, objectives.Batch(tokens, index))
    total = found.loss + config.model.z_loss * found.z_loss
    return total / jnp.sum(objective.count(model.cfg, tokens))

  @jax.jit
  def update(params, state, rates, tokens):
    grads = jax.grad(loss)(params, tokens)
    if config.optim.clip_norm:
      clip = optax.clip_by_global_norm(config.optim.clip_norm)
      grads, _ = clip.update(grads, clip.init(params))
    updates, state = optim.rescaled(tx, rates).update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return update


def _measure(config: Config, model: Transformer) -> Callable[..., Any]:
  """(before, after, tokens) -> mean square changes [2], compiled."""

  def outputs(params, tokens):
    weights = {"params": params}
    hidden: Any = model.apply(weights, tokens[:, :-1], method="hidden")
    logits: Any = model.apply(weights, hidden[0], method="logits")
    return hidden[0], logits[..., : config.model.real_V]

  @jax.jit
  def measure(before, after, tokens):
    pairs = zip(outputs(before, tokens), outputs(after, tokens), strict=True)
    return jnp.stack([jnp.mean(jnp.square(b - a)) for a, b in pairs])

  return measure
