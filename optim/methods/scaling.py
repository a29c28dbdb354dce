"""How the size of a step has to change with width and depth.

`multipliers` says by which factors the initial values, the learning rate, eps
and the decay of a parameter change when a model is wider or deeper than the
model they were tuned on. `rescaled` applies the factors of the rate to the
updates of any transform. The page is `docs/transfer.md`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ..common import checks, evaluation
from ..common.tree import by_path, is_function, is_masked, work_dtype

ROLES = ("embedding", "hidden", "head", "vector")


class LeafFacts(NamedTuple):
  """Sizes of one parameter, and of the same parameter in the base model.

  Attributes:
    role: "embedding" (a table of which rows are looked up), "hidden" (any other
      matrix but the head), "head" (makes logits), or "vector" (gains, biases).
    fan_in: Inputs, the length of the axes that a product sums over. A vector's
      is 1.
    fan_out: Outputs.
    base_fan_in: Inputs in the base model.
    base_fan_out: Outputs in the base model.
    depth_ratio: Layers over layers of the base model for a leaf of a residual
      branch, if each branch is multiplied by 1 / depth_ratio; 1 for all others.
    blocks: Blocks into which a method cuts the inputs and the outputs. Muon and
      its relatives are supposed not to cut.
    base_blocks: The same in the base model.
    sides: Whether the side of the inputs, and of the outputs, has a Kronecker
      factor.
    width_ratio: Width of the model over that of the base model. None: the ratio
      of the inputs, or of the outputs if the inputs are as many as in the base
      model.
  """

  role: str
  fan_in: int
  fan_out: int
  base_fan_in: int
  base_fan_out: int
  depth_ratio: float = 1.0
  blocks: tuple[int, int] = (1, 1)
  base_blocks: tuple[int, int] = (1, 1)
  sides: tuple[bool, bool] = (True, True)
  width_ratio: float | None = None


class Multipliers(NamedTuple):
  """Factors of one parameter; all are 1 in the base model.

  Attributes:
    init: Of the standard deviation of the initial values.
    rate: Of the learning rate.
    eps: Of the eps that a method adds to the root of a second moment or, in
      Newton-Schulz, to a norm; 1 for a rule that needs none.
    matrix_eps: Of what is added to the eigenvalues of G G^T, unless the number
      is relative to the largest eigenvalue.
    decay: Of the share of the weights that a step removes.
  """

  init: float
  rate: float
  eps: float
  matrix_eps: float
  decay: float

  @property
  def coupled_decay(self) -> float:
    """Factor of a weight_decay that the factored rate multiplies as well."""
    return self.decay / self.rate


class _Ratios(NamedTuple):
  """What the rules are made of; letters of `docs/transfer.md`."""

  i: float
  o: float
  depth: float
  cuts: tuple[float, float]  # Ratios of the numbers of blocks, in and out.
  exponent: float  # E, of all sides together.
  facts: LeafFacts

  @property
  def blocks(self) -> float:
    """b."""
    return self.cuts[0] * self.cuts[1]

  def built_in(self, factor: Callable[[int, int], float]) -> float:
    """By how much a factor within a transform changes with the size."""
    f = self.facts
    own = factor(f.fan_in, f.fan_out)
    return own / factor(f.base_fan_in, f.base_fan_out)


Rule = Callable[[_Ratios], tuple[float, float]]  # -> (rate, eps).


def _sgd(r: _Ratios) -> tuple[float, float]:
  return r.o / r.i * r.depth, 1.0


def _adam(r: _Ratios) -> tuple[float, float]:
  return 1 / r.i, 1 / (r.depth * r.o)


def _adamuon(r: _Ratios) -> tuple[float, float]:
  return 1 / r.i, (r.i * r.o) ** -0.5


def _newton_schulz(r: _Ratios) -> tuple[float, float]:
  return (r.o / r.i) ** 0.5, (r.i / r.o) ** 0.5 / r.depth


def _shape_scale(inputs: int, outputs: int) -> float:
  """What `scale_by_muon` and its relatives multiply by."""
  return max(1.0, outputs / inputs) ** 0.5


def _muon(r: _Ratios) -> tuple[float, float]:
  rate, eps = _newton_schulz(r)
  return rate / r.built_in(_shape_scale), eps


def _muon_entries(r: _Ratios) -> tuple[float, float]:
  rate, eps = _adamuon(r)
  return rate / r.built_in(_shape_scale), eps


def _muon_consistent_rms(r: _Ratios) -> tuple[float, float]:
  rate, eps = _newton_schulz(r)
  return rate / r.built_in(lambda n, m: max(n, m) ** 0.5), eps


def _soap(r: _Ratios) -> tuple[float, float]:
  """With lengths b of the blocks: b_out^(e_out / 2) b_in^(e_in / 2) / i."""
  lengths = 1.0
  for n, cut, has in zip((r.i, r.o), r.cuts, r.facts.sides, strict=True):
    lengths *= (n / cut) ** 0.5 if has else 1.0
  return lengths / r.i, lengths / (r.depth * r.o)


def _shampoo_traced(r: _Ratios) -> tuple[float, float]:
  """Tr(L)^(E - 1/2) is in the transform: no exponent and no depth is left."""
  return (r.o / r.i) ** 0.5 * r.blocks**-0.5, 1.0


def _shampoo_raw(r: _Ratios) -> tuple[float, float]:
  rate = (r.o / r.i) ** (1 - r.exponent) * r.depth ** (1 - 2 * r.exponent)
  return rate * r.blocks**-r.exponent, 1.0


def _constant(r: _Ratios) -> tuple[float, float]:
  del r
  return 1.0, 1.0


def _adam_sphere(r: _Ratios) -> tuple[float, float]:
  return r.i**-0.5, 1 / (r.depth * r.o)


def _rules() -> dict[str, Rule]:
  """{name of a method, or of its variant: its rule}."""
  families: dict[Rule, str] = {
    _sgd: "sgd momentum dampened_sgd accelerated_sgd schedule_free_sgd",
    _adam: "adam adamw adafactor lion signum rmsprop nadamw ademamix "
    "simplified_ademamix schedule_free_adamw mars sophia_g adalayer shampoo "
    "with_update_rms",
    _adamuon: "adamuon",
    _newton_schulz: "newton_schulz",
    _muon: "muon normuon soap_muon",
    _muon_consistent_rms: "muon_consistent_rms",
    _muon_entries: "muon_entries",
    _soap: "soap kl_soap kl_shampoo moso",
    _shampoo_traced: "shampoo_traced",
    _shampoo_raw: "shampoo_raw",
    _constant: "normalize_spectral muon_unit muon_h normuon_h soap_h",
    _adam_sphere: "adam_h",
  }
  return {name: rule for rule, s in families.items() for name in s.split()}


RULES = _rules()


def multipliers(
  facts: LeafFacts, rule: str, *, exponent: float = 0.5
) -> Multipliers:
  """Factors by which the numbers of a tuned base model change with the size.

  With them a change of the weights moves the activations of each layer by an
  amount that depends on neither width nor depth. Rates, eps and decays are
  those of the base model, times the factors.

  Args:
    facts: Of the parameter.
    rule: The name of the method that updates this parameter, one of
      `optim.methods.scaling.RULES`. "shampoo" is our default, with the length
      of Adam's step; "shampoo_traced" is `grafting="none"`; "shampoo_raw" has
      no factor of the trace. "muon_consistent_rms" is Muon with
      `consistent_rms`, "muon_unit" with `scale="unit"`, "muon_entries" with
      `variance="entries"`; "newton_schulz" and "adamuon" have no scale of
      their own. "with_update_rms" and "normalize_spectral" are any direction in
      front of these transforms. A vector gets Adam's factors whatever the rule.
    exponent: Of each factor, for "shampoo_raw" only; 1/2 as in our Shampoo.

  Returns:
    The factors. Those that a transform contains are divided out.

  Raises:
    ValueError: For an unknown rule or role, or a size that is not positive.

  References:
    Qiu et al., "Hyperparameter transfer for matrix-preconditioned optimizers",
    2025, https://arxiv.org/abs/2512.05620; Yang et al., "Tensor Programs V",
    2022, https://arxiv.org/abs/2203.03466
  """
  checks.choice("rule", rule, tuple(RULES))
  checks.choice("role", facts.role, ROLES)
  for name, sizes in facts._asdict().items():
    if name not in ("role", "sides"):
      for size in sizes if isinstance(sizes, tuple) else (sizes,):
        if size is not None:
          checks.positive(name, size)
  checks.positive("exponent", exponent)
  # A vocabulary is no width: rows are looked up one by one, and logits stand
  # for themselves.
  i = facts.fan_in / facts.base_fan_in if facts.role != "embedding" else 1.0
  o = facts.fan_out / facts.base_fan_out if facts.role != "head" else 1.0
  width = facts.width_ratio or (i if i != 1 else o)
  pairs = zip(facts.blocks, facts.base_blocks, strict=True)
  cut_in, cut_out = (own / base for own, base in pairs)
  total = exponent * sum(facts.sides)
  r = _Ratios(i, o, facts.depth_ratio, (cut_in, cut_out), total, facts)
  rate, eps = RULES[rule](r)
  if facts.role == "vector":
    rate, eps = 1.0, _adam(r)[1]
  init = {"hidden": i**-0.5, "head": 1 / width}.get(facts.role, 1.0)
  matrix_eps = i / (o * r.depth**2 * r.blocks)
  return Multipliers(init, rate, eps, matrix_eps, 1 / width)


def rescaled(
  tx: optax.GradientTransformation, scales: Any
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the update of each leaf by the leaf's own factor.

  Put it around a *direction*, and let the decay follow:

      optax.chain(
        optim.rescaled(optim.scale_by_muon(), rates),
        optax.add_decayed_weights(weight_decay * decay),
        optax.scale_by_learning_rate(learning_rate),
      )

  A step then removes learning_rate * weight_decay * decay of every leaf,
  whatever the leaf's factor, as the rules of `multipliers` want it. Around a
  whole optimiser, `rescaled` multiplies the decay as well. Clipping of
  gradients stays outside.

  Args:
    tx: Any transform.
    scales: Factors >= 0: a tree like params or a prefix of it, or a function of
      params that makes such a tree; `multipliers(...).rate` for each leaf. A
      factor is a number, or an array that is broadcast against the leaf.

  Returns:
    A transform with the state of `tx`.

  Raises:
    ValueError: For a negative factor. At `init`, for a leaf without a factor, a
      factor without a leaf, or a `tx` that keeps weights of its own (averages,
      Schedule-Free), which have to be around `rescaled`.
  """
  tx = optax.with_extra_args_support(tx)
  if not is_function(scales):
    _check_factors(scales)

  def init_fn(params):
    _factors(scales, params)
    state = tx.init(params)
    if evaluation.keeps_a_point(state):
      raise ValueError(
        "tx keeps weights of its own, which follow its own updates and not the "
        "rescaled ones. Put rescaled inside, e.g. "
        "optim.average_weights(optim.rescaled(tx, scales), 0.99)."
      )
    return state

  def update_fn(updates, state, params=None, **extra_args):
    factors = _factors(scales, updates)
    updates, state = tx.update(updates, state, params, **extra_args)

    def scaled(path, u):
      factor = factors[jax.tree_util.keystr(path)]
      return (u.astype(work_dtype(u)) * factor).astype(u.dtype)

    return jax.tree_util.tree_map_with_path(scaled, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_factors(scales: Any) -> None:
  for path, factor in by_path(scales).items():
    if getattr(factor, "ndim", 0) == 0:
      checks.positive(f"scales{path}", factor, zero_too=True)


def _factors(scales: Any, tree: Any) -> dict[str, Any]:
  """{path of a leaf: its factor}; a masked leaf has none."""
  if is_function(scales):
    scales = scales(tree)
    _check_factors(scales)
  entries = dict(jax.tree_util.tree_flatten_with_path(scales)[0])
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)
  found, used = {}, set()
  for path, leaf in flat:
    own = [path[:end] for end in range(len(path) + 1) if path[:end] in entries]
    used |= set(own)
    name = jax.tree_util.keystr(path)
    if is_masked(leaf):  # What is below is masked as well.
      used |= {entry for entry in entries if entry[: len(path)] == path}
    elif own:
      found[name] = entries[own[0]]
    else:
      raise ValueError(
        f"scales has no factor for leaf {name}; give it one, e.g. 1.0, or give "
        "one to a subtree that holds the leaf."
      )
  idle = [path for path in entries if path not in used]
  if idle and flat:
    raise ValueError(
      f"scales{jax.tree_util.keystr(idle[0])} belongs to no leaf of params, "
      f"whose leaves are {list(found)[:8]}."
    )
  return found
