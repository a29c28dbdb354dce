"""What tests expect of one version of jax and not of another: all of it.

Python decides the version: 3.11 gets jax 0.10.2, the last one for it, and 3.13
the newest. `docs/versions.md` says which are tested. A number stands here only
if the program is right on both, and its comment says what differs.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax

_T = TypeVar("_T")
_INSTALLED = tuple(int(part) for part in jax.__version__.split(".")[:2])


def of_jax(values: Mapping[tuple[int, int], _T]) -> _T:
  """The value of the newest (major, minor) not newer than the installed jax."""
  return values[max(since for since in values if since <= _INSTALLED)]


# All-reduces of a training step on the mesh "mixed" that 0.12 does without, of
# those that `tests/lm/train/test_sharded.py` counted on 0.10.2: XLA now sums in
# one call what it summed in two. Over `data` these are the gradients of the
# embedding and the head, and those of the layers; in the layerwise step also
# gradients of two activations over `tensor`. Other meshes have as many as
# before.
FEWER_REDUCTIONS = of_jax(
  {
    (0, 10): {},
    (0, 12): {
      ("adamw", "mixed"): 1,
      ("muon", "mixed"): 1,
      ("shampoo", "mixed"): 1,
      ("soap", "mixed"): 1,
      ("layerwise", "mixed"): 2,
      ("lotion", "mixed"): 1,
      ("lotion of factors", "mixed"): 1,
    },
  }
)

# What a plan counts of activations. For the derivative of gelu tanh keeps one
# array [rows, L, F] in each layer, 1 - h^2 (the primitive `one_minus_square`),
# where 0.10 kept 1 - h and h. olmo150m has 12 layers, L = 1024, F = 4096, in
# bfloat16: 6.4 GB of 64 rows, which test_plan.py has on each of 4 chips, 0.8 GB
# of 8 rows, as in the table of `docs/pods.md`, which is of 0.10.
OLMO150M_ON_4_CHIPS = of_jax({(0, 10): "156 GB", (0, 12): "150 GB"})
OLMO150M_ON_THE_PAGE = of_jax(
  {
    (0, 10): {},
    (0, 12): {"18.1 GB": "17.2 GB", "23.4 GB": "22.6 GB", "68 %": "66 %"},
  }
)
