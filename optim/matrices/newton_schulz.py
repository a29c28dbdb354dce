"""Orthogonalisation by matrix products: Newton-Schulz iterations.

An iteration is X <- a X + (b A + c A^2) X with A = X X^T. It moves each
singular value s to a s + b s^3 + c s^5 and turns nothing. A list has one triple
(a, b, c) for each step.

Dimension key: see `plan.py`.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..common import checks
from . import linalg

Triple = tuple[float, float, float]
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]
NormName = Literal["frobenius", "schatten4"]

KELLER: Triple = (3.4445, -4.7750, 2.0315)
_CONVERGENT: Triple = (2.0, -1.5, 0.5)


class TripleList(NamedTuple):
  """A list of triples, one a step, and how a longer run goes on."""

  triples: tuple[Triple, ...]
  repeat_last: bool = False  # Steps beyond the list: else start the list again.


def _with_margin(factor: float, *triples: Triple) -> tuple[Triple, ...]:
  """The triples for X / factor: the first step does the division."""
  a, b, c = triples[0]
  return (a / factor, b / factor**3, c / factor**5), *triples[1:]


# Singular values from 1 down to 4^-4 end within the bounds that are given.
LISTS: dict[str, TripleList] = {
  # Jordan et al., "Muon", 2024. 0.74 to 1.19 after 5 steps.
  "keller": TripleList((KELLER,) * 5),
  # modded-nanogpt's medium track and NVIDIA's default. 0.98 to 1.14.
  "quintic": TripleList(
    (
      (4.0848, -6.8946, 2.9270),
      (3.9505, -6.3029, 2.6377),
      (3.7418, -5.5913, 2.3037),
      (2.8769, -3.1427, 1.2046),
      (2.8366, -3.0525, 1.2012),
    )
  ),
  # Amsel et al., https://arxiv.org/abs/2505.16932, for X / 1.01. 1.0000.
  "polar_express": TripleList(
    (
      (8.2051, -22.9019, 16.4607),
      (4.0664, -2.8612, 0.5184),
      (3.9096, -2.8234, 0.5250),
      (3.2856, -2.4153, 0.4853),
      (2.2779, -1.6198, 0.3985),
      (1.8726, -1.2307, 0.3585),
      (1.8564, -1.2132, 0.3568),
      (1.875, -1.25, 0.375),
    ),
    repeat_last=True,
  ),
  # The same in five steps, as in microsoft/dion, for X / 1.02. 0.86 to 1.03.
  "dion": TripleList(
    _with_margin(
      1.02,
      (8.156554524902461, -22.48329292557795, 15.878769915207462),
      (4.042929935166739, -2.808917465908714, 0.5000178451051316),
      (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
      (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
      (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    repeat_last=True,
  ),
  # Grishina et al., https://arxiv.org/abs/2506.10935. 0.90 to 1.09.
  "cans": TripleList(
    (
      (8.4703, -25.1081, 18.6293),
      (4.1828, -3.1087, 0.5806),
      (3.9619, -2.9541, 0.5630),
      (3.2866, -2.4647, 0.5074),
      (2.2737, -1.6447, 0.4162),
    ),
    repeat_last=True,
  ),
  # https://arxiv.org/abs/2606.00371: c = 0 saves A^2, 40 % of the work.
  # 0.44 to 1.29.
  "cubic5": TripleList(
    (
      (3.3656576, -3.3420992, 0.0),
      (2.5744352, -1.4957376, 0.0),
      (2.5368962, -1.4312570, 0.0),
      (2.4418906, -1.2764040, 0.0),
      (2.2230472, -0.9630650, 0.0),
    )
  ),
  # Two phases: fast growth, then convergence to 1. 1.0000 to 1.0004.
  "deepseekv4": TripleList(
    (KELLER,) * 8 + (_CONVERGENT,) * 2, repeat_last=True
  ),
  # The optimiser speed run's record, with norm="schatten4". 1.0000.
  "record": TripleList((_CONVERGENT,) * 12),
}


def triples_of(
  coefficients: Coefficients, num_steps: int | None = None
) -> tuple[Any, ...]:
  """The triple of each step.

  Args:
    coefficients: A name of `LISTS`, one triple a, b, c for all steps, or a
      sequence of triples. Steps beyond a list repeat its last triple
      ("polar_express", "dion", "cans", "deepseekv4") or start the list again.
    num_steps: Number of steps. None: the length of the list; 5 for one triple.

  Returns:
    `num_steps` triples.

  Raises:
    ValueError: For an unknown name, or numbers that are no triples.
  """
  if isinstance(coefficients, str):
    checks.choice("coefficients", coefficients, tuple(LISTS))
    triples, repeat_last = LISTS[coefficients]
  else:
    triples, repeat_last = tuple(coefficients), False
    if triples and np.ndim(triples[0]) == 0:
      triples = (triples,) * 5
  if not triples or any(not _is_triple(t) for t in triples):
    raise ValueError(
      f"coefficients={coefficients!r} must be a name, three numbers a, b, c, "
      f"or a list of such triples. The names are {', '.join(LISTS)}."
    )
  if num_steps is None:
    return triples
  if repeat_last:
    triples = triples + triples[-1:] * (num_steps - len(triples))
  return tuple(triples[i % len(triples)] for i in range(num_steps))


def _is_triple(x: Any) -> bool:
  return not isinstance(x, str) and hasattr(x, "__len__") and len(x) == 3


def newton_schulz(
  x_SIO: jax.Array,
  coefficients: Coefficients = KELLER,
  *,
  num_steps: int | None = None,
  norm: NormName = "frobenius",
  eps: float = 1e-7,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """Replaces the singular values of each matrix by values near 1.

  The iteration is X <- a X + (b A + c A^2) X with A = X X^T, from
  X / (||X|| + eps). The bounds in which each list leaves the singular values
  stand beside the list in `LISTS`. If c = 0 at every step, A^2 is not computed.

  Args:
    x_SIO: Any matrices. A is the Gram matrix of the shorter side.
    coefficients: As for `triples_of`.
    num_steps: As for `triples_of`.
    norm: "frobenius", or "schatten4", the fourth root of the sum of the
      fourth powers of the singular values. The second is nearer to the largest
      singular value, so fewer steps are spent on growth.
    eps: Added to the Frobenius norm, in units of X. At least 1e-15 in float32.
    dtype: Type of the products.

  Returns:
    Like `x_SIO`, of the type of `x_SIO`.

  References:
    Jordan et al., "Muon", 2024, https://kellerjordan.github.io/posts/muon/
  """
  checks.choice("norm", norm, get_args(NormName))
  triples = triples_of(coefficients, num_steps)
  # A power of two, which costs no digits: squares shall not overflow.
  largest_S11 = jnp.max(jnp.abs(x_SIO), axis=(-2, -1), keepdims=True)
  scaled_SIO = x_SIO * jnp.where(largest_S11 > 2.0**40, 2.0**-80, 1.0)
  scaled_SIO = scaled_SIO / (linalg.norm(scaled_SIO) + eps)
  tall = x_SIO.shape[-2] > x_SIO.shape[-1]

  def gram_of(x):
    # Of a tall matrix X^T X is the smaller product; it stands on the right.
    # Of a wide one, x @ x.mT would have XLA:CPU compile a copy, and make it.
    return x.mT @ x if tall else jnp.einsum("sik,sjk->sij", x, x)

  if norm == "schatten4":
    root_S11 = jnp.sqrt(linalg.norm(gram_of(scaled_SIO)))
    some = root_S11 > 0
    scaled_SIO = scaled_SIO / jnp.where(some, root_S11, 1)
  x = scaled_SIO.astype(dtype)
  cubic = all(isinstance(c, (int, float)) and c == 0 for _, _, c in triples)

  def step(x, triple):
    a, b, c = triple
    gram = gram_of(x)
    polynomial = b * gram if cubic else b * gram + c * (gram @ gram)
    return a * x + (x @ polynomial if tall else polynomial @ x)

  if all(triple is triples[0] for triple in triples):
    first = triples[0]
    x = jax.lax.fori_loop(0, len(triples), lambda _, x: step(x, first), x)
  else:
    table = jnp.asarray(triples, dtype)
    x, _ = jax.lax.scan(lambda x, row: (step(x, row), None), x, table)
  return x.astype(x_SIO.dtype)
