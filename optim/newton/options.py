"""The options of Gauss-Newton, checked when a transform is built."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from ..common import checks
from ..common.tree import is_function
from ..curvature import groups, local_model
from ..curvature.products import LossFn, ModelFn
from . import cg
from . import damping as damping_rules
from . import line_search as searches
from .damping import Damping, LevenbergMarquardt
from .line_search import AnyLineSearch


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """The model and the loss that is minimised.

  Attributes:
    model_fn: (params, batch) -> outputs, or a `chunked_lm_head`.
    loss_fn: (outputs, batch) -> scalar, convex in the outputs. Take
      `softmax_cross_entropy` or `squared_error` where possible: their curvature
      is in closed form.
  """

  model_fn: ModelFn
  loss_fn: LossFn


@dataclasses.dataclass(frozen=True, eq=False)
class OuterOptions:
  """Options of an outer step, for both forms of Gauss-Newton.

  Attributes:
    inner_optimizer: Makes the inner updates. Build it with learning rate 1,
      e.g. `optax.adamw(1.0)`. Its weight decay acts on params + d.
    inner_steps: N, the number of batches of an update, >= 1.
    scope: "full"; or a function of params that gives each leaf a label, or the
      tree of labels. Each group of leaves with one label gets a model of its
      own with all other groups fixed, and an inner state of its own. The
      curvatures of the models are the diagonal blocks of G.
    line_search: `LineSearch`, `QuadraticLineSearch` or "quadratic". None takes
      alpha = 1.
    damping: A number, a function of the outer step, or `LevenbergMarquardt`, in
      units of G. damping / 2 |d|^2 is added to the model.
    warm_start: The start of the next d. 1 starts from (1 - alpha) d, so that
      the iterate params + d stays. xi < 1 starts from xi d, Martens' decay. 0
      starts from 0.
    reset_inner_state: True: the inner state starts anew at each outer step.
    learning_rate: Multiplies the inner updates: a number, or a function of
      (outer step, inner update), e.g. from `inner_schedule`. An outer step has
      N times `steps_per_batch` inner updates.
    clip_norm: Bound on the norm of the inner gradient, over all groups. None
      and 0 mean no bound.
    accumulate_dtype: Type of d and of the inner state; None is float32. A leaf
      of a wider type keeps its type.
  """

  inner_optimizer: optax.GradientTransformation
  _: dataclasses.KW_ONLY
  inner_steps: int
  scope: groups.Scope = "full"
  line_search: AnyLineSearch | Literal["quadratic"] = searches.DEFAULT
  damping: Damping = 0.0
  warm_start: float = 1.0
  reset_inner_state: bool = False
  learning_rate: Any = 1.0
  clip_norm: float | None = None
  accumulate_dtype: Any | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("init", "update"):
      if not callable(getattr(self.inner_optimizer, name, None)):
        raise ValueError(
          f"inner_optimizer={self.inner_optimizer!r} must be an optax "
          "transform, e.g. optax.adamw(1.0) or optim.muon(1.0); learning_rate "
          "multiplies its updates."
        )
    checks.count("inner_steps", self.inner_steps)
    damping_rules.check(self.damping)
    checks.scalar_or_schedule("learning_rate", self.learning_rate)
    traced = isinstance(self.warm_start, jax.core.Tracer)
    if not traced and not 0 <= float(self.warm_start) <= 1:
      raise ValueError(
        f"warm_start={self.warm_start} must be in [0, 1]: 1 keeps the iterate, "
        "0 starts anew, a number between starts from that share of the "
        "displacement, e.g. 0.95."
      )
    if self.clip_norm is not None:
      checks.positive("clip_norm", self.clip_norm, zero_too=True)
    if not isinstance(self.scope, str) and not is_function(self.scope):
      groups.find_groups(self.scope)
    searches.check(self.line_search)

  @property
  def search(self) -> AnyLineSearch:
    """The line search as an instance of its class, or None."""
    return searches.check(self.line_search)


@dataclasses.dataclass(frozen=True, eq=False)
class SolverOptions(OuterOptions, Model):
  """Options of an outer step that makes its local models itself.

  Attributes:
    mode: "quadratic" (Gauss-Newton), "prox_linear", or "nonlinear". "nonlinear"
      is the control: the loss itself, by plain gradients.
    steps_per_batch: Inner updates on each batch, >= 1.
    splits: Number of parts that the rows of each batch are cut into, to save
      memory. The gradients of the parts are added with their weights.
    solver: "first_order" takes steps of `inner_optimizer`; a `CG` solves on all
      N batches at once.
    group_axis: Mesh axis over which the groups are shared out; None: each
      device computes all groups.
    matmul_precision: Precision of the products of model and loss, as for
      `jax.default_matmul_precision`. None does not change the precision.
  """

  _: dataclasses.KW_ONLY
  mode: local_model.Mode = "quadratic"
  steps_per_batch: int = 1
  splits: int = 1
  solver: Literal["first_order"] | cg.CG = "first_order"
  group_axis: str | None = None
  matmul_precision: str | None = None

  def __post_init__(self):
    """Raises for any argument out of range, or options that clash."""
    super().__post_init__()
    checks.choice("mode", self.mode, local_model.MODES)
    checks.count("steps_per_batch", self.steps_per_batch)
    checks.count("splits", self.splits)
    if isinstance(self.solver, cg.CG):
      cg.check(self.solver, self.damping, self.inner_steps)
    else:
      checks.choice("solver", self.solver, ("first_order",))
    for clash, what, way_out in (*self._cg_clashes(), *self._clashes()):
      if clash:
        raise ValueError(f"{what} does not go together; take {way_out}.")

  @property
  def adapts_damping(self) -> bool:
    """Whether the damping is adapted to the fit of the local model."""
    return isinstance(self.damping, LevenbergMarquardt)

  def _cg_clashes(self):
    """(whether, what, way out) of options that CG cannot have."""
    if not isinstance(self.solver, cg.CG):
      return []
    found = [
      (self.mode != "quadratic", f"mode={self.mode!r}", "mode='quadratic'"),
      (self.scope != "full", "a layerwise scope", "scope='full'"),
      (self.steps_per_batch > 1, "steps_per_batch > 1", "steps_per_batch=1"),
      (self.splits > 1, "splits > 1", "more and smaller batches"),
    ]
    return [(clash, f"solver=CG with {a}", b) for clash, a, b in found]

  def _clashes(self):
    """(whether, what, way out) of other options that clash."""
    layerwise = self.scope != "full"
    nonlinear = self.mode == "nonlinear"
    return [
      (
        self.adapts_damping and nonlinear,
        "LevenbergMarquardt with mode='nonlinear', which is its own model,",
        "a number",
      ),
      (
        self.adapts_damping and self.search is None,
        "LevenbergMarquardt without a line search, whose data it needs,",
        "line_search=LineSearch()",
      ),
      (
        self.group_axis is not None and not layerwise,
        f"group_axis={self.group_axis!r} with scope='full', which has no "
        "groups,",
        "group_axis=None",
      ),
    ]
