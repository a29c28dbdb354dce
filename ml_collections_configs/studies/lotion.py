"""Weights of few bits: PTQ, QAT, RAT and LOTION, by grid.

    python -m lm.study lotion --jobs=2

A run decays to a rate of 0, and its weights are scored as they are, rounded to
nearest, and rounded at random, the mean of eight draws. Rounding at random
chooses. Every method has as many trials on its first grid; LOTION's strength is
one of its keys. "-s": gradients of QAT and RAT see the scales, as LOTION's do.

Source: https://arxiv.org/abs/2510.08757, which claims losses below those of
PTQ, QAT and RAT; the effects are not known, so the thresholds are 0.
"""

from typing import Any

Plain = dict[str, Any]

_THIRD = {"model.D": 80, "model.F": 320}  # 0.3M parameters in the blocks.
_RUN = {
  "schedule.name": "cosine", "schedule.end_factor": 0.0, "checkpoint.every": 0,
  "eval.every": 0, "eval.final_batches": 8,
}  # fmt: skip
_HARD = {"quant.scale_gradient": False}


def _arm(name: str, overrides: Plain, method: str = "adamw", **more) -> Plain:
  """A method; LOTION's has strengths."""
  rate, strengths = {"adamw": 6e-3, "soap": 1.2e-2}[method], ()
  if "lotion" in name:
    sampled = overrides.get("quant.curvature") == "sampled"
    strengths = (10.0, 1.0, 100.0) if sampled else (1e4, 1e3, 1e5)
  tuned = {"learning_rate": rate}
  tuned |= {"quant.strength": strengths} if strengths else {}
  changes = {"quant.method": name.split("-")[0].split()[-1], **overrides}
  return {
    "method": method,
    "name": name,
    "overrides": changes,
    "tuned": tuned,
    **more,
  }


def _cells(rows: int, tokens: int, grids: tuple[str, ...], model: Plain):
  return {
    grid: {
      "batch": rows, "tokens": tokens,
      "overrides": {**model, "quant.grid": grid},
    }
    for grid in grids
  }  # fmt: skip


_FEW = (
  _arm("ptq", {}), _arm("qat", _HARD), _arm("rat", _HARD), _arm("lotion", {}),
)  # fmt: skip
_ALL = (
  *_FEW,
  _arm("qat-s", {}),
  _arm("rat-s", {}),
  _arm("lotion-sampled", {"quant.curvature": "sampled"}),
  _arm("soap ptq", {}, "soap", whole=True),
  _arm("soap lotion", {"quant.curvature": "factors"}, "soap", whole=True),
)
_STUDY: Plain = {
  "title": "LOTION",
  "overrides": _RUN,
  "reference": "ptq",
  "scores": {
    "at random": "loss_random", "to nearest": "loss_nearest",
    "as they are": "loss",
  },
  "claims": tuple(
    {
      "claim": "lower", "arm": "lotion", "than": than, "threshold": 0.0,
      "cells": ("int4", "fp4"),
    }
    for than in ("ptq", "qat", "rat")
  ),
  "points": 0,
}  # fmt: skip

TIERS: dict[str, Plain] = {
  "small": {
    **_STUDY,
    "cells": _cells(4, 500_000, ("int4", "fp4"), _THIRD),
    "arms": _FEW,
    "seeds": (0, 1, 2),
    "trials": 4,
  },
  "full": {
    **_STUDY,
    "cells": _cells(8, 983_040, ("int4", "fp4", "int8"), {}),
    "arms": _ALL,
    "seeds": (0, 1, 2, 3, 4),
    "trials": 6,
  },
  "pod": {
    **_STUDY,
    "config": "ml_collections_configs/olmo150m.py",
    "overrides": {"schedule.end_factor": 0.0},
    "cells": _cells(256, 3_300_000_000, ("int4", "fp4"), {}),
    "arms": _FEW,
    "seeds": (0, 1, 2),
    "trials": 5,
  },
}
