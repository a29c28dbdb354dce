"""SOAP beside AdamW, Shampoo and Muon, at two batches.

    python -m lm.study soap --jobs=2

The rate is constant and the averaged weights are scored, so that one run tells
the updates to every loss. "f" is the number of updates between refreshes, 10
where none is told; its arms have the settings of 10. Embedding and head are
AdamW's, but for "one-sided": a factor on the width, by SOAP.

Source: https://arxiv.org/abs/2409.11321, which claims 40 % fewer updates than
AdamW's at a large batch: the threshold is half of it in logs.
"""

from typing import Any

Plain = dict[str, Any]

_HALF = 0.6**0.5  # Of the updates, in logs.
_OFTEN = {"soap": (1, 50, 100), "shampoo": (1, 50, 100)}
_THIRD = {"model.D": 80, "model.F": 320}  # 0.3M parameters in the blocks.
_RUN = {
  "schedule.name": "constant", "checkpoint.every": 0, "eval.batches": 8,
  "eval.final_batches": 8,
}  # fmt: skip


_STUDY: Plain = {"title": "SOAP", "scores": {"averaged": "avg/*/loss"}}


def _cell(rows: int, tokens: int, decay: float, overrides: Plain) -> Plain:
  changes = {
    **overrides, "optim.averages": (f"ema:{decay:g}",),
    "train.microbatch_size": min(rows, 16),
  }  # fmt: skip
  return {"batch": rows, "tokens": tokens, "overrides": changes}


def _arms(large: str, often: Plain) -> tuple[Plain, ...]:
  """Methods at both batches, and f by method at the large one."""
  refreshed = (
    {
      "method": method, "name": f"{method}, f = {f}", "cells": (large,),
      "kwargs": {"precondition_frequency": f}, "settings_of": (method, large),
    }
    for method, tried in often.items()
    for f in tried
  )  # fmt: skip
  one_sided = {
    "method": "soap", "name": "soap, one-sided", "cells": (large,),
    "whole": True, "overrides": {"optim.embeddings": "one_sided"},
  }  # fmt: skip
  return ({"method": "adamw"}, {"method": "soap"}, one_sided, *refreshed)


def _claims(large: str, rare: int) -> tuple[Plain, ...]:
  at = {"cells": (large,), "arm": "soap"}
  stale = {"claim": "lower", "threshold": 0.0, "arm": f"soap, f = {rare}"}
  return (
    {"claim": "faster", "to": "adamw", "threshold": _HALF, **at},
    {"claim": "lower", "than": "shampoo", "threshold": 0.0, **at},
    {**stale, "than": "adamw"},
    {**stale, "than": f"shampoo, f = {rare}"},
  )


TIERS: dict[str, Plain] = {
  "small": {
    **_STUDY,
    "overrides": _RUN,
    "cells": {
      "8 rows": _cell(8, 250_000, 0.95, _THIRD),
      "32 rows": _cell(32, 500_000, 0.9, _THIRD),
    },
    "arms": (
      *_arms("32 rows", {"soap": (1, 50), "shampoo": (50,)}),
      {"method": "shampoo", "cells": ("32 rows",)},
      {"method": "muon", "cells": ("32 rows",)},
    ),
    "claims": _claims("32 rows", 50),
    "seeds": (0, 1, 2),
    "trials": 4,
    "points": 10,
  },
  "full": {
    **_STUDY,
    "overrides": _RUN,
    "cells": {
      "2k tokens": _cell(8, 1_024_000, 0.98, {}),
      "16k tokens": _cell(64, 1_638_400, 0.95, {}),
    },
    "arms": (*_arms("16k tokens", _OFTEN), "shampoo", "muon"),
    "claims": _claims("16k tokens", 100),
    "seeds": (0, 1, 2, 3, 4),
    "trials": 6,
    "points": 20,
  },
  "pod": {
    **_STUDY,
    "config": "ml_collections_configs/olmo150m.py",
    "overrides": {"schedule.name": "constant", "optim.averages": ("ema:0.99",)},
    "cells": {
      f"150M, {rows} rows": {
        "batch": rows, "tokens": 3_300_000_000,
        "overrides": {
          "train.microbatch_size": 256, "eval.final_batches": 32,
        },
      }
      for rows in (256, 2048)
    },
    "arms": (*_arms("150M, 2048 rows", _OFTEN), "shampoo", "muon"),
    "claims": _claims("150M, 2048 rows", 100),
    "seeds": (0, 1, 2),
    "trials": 5,
    "points": 50,
  },
}  # fmt: skip
