"""Gauss-Newton beside AdamW, SOAP and Muon, at three batches.

    python -m lm.study gauss_newton --jobs=2

All methods see the same rows for an update. Gauss-Newton solves on four fifths
of them in microbatches of 4 rows, 4, 12 or 36 of them, and searches on the
rest. Every method is tuned at the largest batch, where the claims are, and has
these settings at the others. AdamW, SOAP and Muon make more updates, to come
as far. The control is the same loop on the loss itself.

Source: https://arxiv.org/abs/2510.09378, which claims 5.4 times fewer steps
than SOAP's and 16 times fewer than Muon's: thresholds are half of it in logs.
Layerwise needs at most 1.4 times as many. The control is this project's.
"""

from typing import Any

Plain = dict[str, Any]

_THIRD = {"model.D": 80, "model.F": 320}  # 0.3M parameters in the blocks.
_LAYERWISE = {"gauss_newton.scope": "layerwise", "model.layers": "unroll"}
_PROX = {"gauss_newton.mode": "prox_linear"}


def _cells(updates: dict[int, int], model: Plain) -> Plain:
  """Rows -> updates of Gauss-Newton; the first batch is the tuned one."""
  first = f"{next(iter(updates))} rows"
  return {
    f"{rows} rows": {
      "batch": rows, "tokens": rows * 256 * count,
      "overrides": {**model, "train.microbatch_size": 20},
      "settings_of": "" if f"{rows} rows" == first else first,
    }
    for rows, count in updates.items()
  }  # fmt: skip


def _study(length: float, large: str, at: tuple[str, ...]) -> Plain:
  """Muon and the variants run in the cells `at`; length is the baselines'."""
  gn = {"claim": "faster", "arm": "gauss_newton", "cells": (large,)}
  control = {"method": "nonlinear", "name": "control", "cells": at}
  return {
    "title": "Gauss-Newton",
    "overrides": {
      "schedule.name": "cosine", "checkpoint.every": 0, "eval.batches": 8,
      "eval.final_batches": 8, "log.every": 1,  # Or no depth is written.
    },
    "arms": (
      {"method": "adamw", "length": length},
      {"method": "soap", "length": length},
      {"method": "muon", "length": length, "cells": at},
      {"method": "gauss_newton"},
      _variant("layerwise", at, _LAYERWISE),
      control,
    ),
    "claims": (
      {**gn, "than": "soap", "to": "soap", "threshold": 5.4**-0.5, "cells": ()},
      {**gn, "than": "muon", "to": "gauss_newton", "threshold": 16**-0.5},
      {
        **gn, "arm": "layerwise", "than": "gauss_newton", "to": "layerwise",
        "threshold": 1.4,
      },
      {**gn, "than": "control", "to": "gauss_newton", "threshold": 1.0},
    ),
  }  # fmt: skip


def _variant(name: str, at: tuple[str, ...], overrides: Plain) -> Plain:
  method = {"method": "gauss_newton", "overrides": overrides}
  return {**method, "name": name, "cells": at}


_FULL = _study(4, "360 rows", ())

TIERS: dict[str, Plain] = {
  "small": {
    **_study(2, "180 rows", ("180 rows",)),
    "cells": _cells({180: 8, 60: 16, 20: 36}, _THIRD),
    "seeds": (0, 1, 2),
    "trials": 4,
    "points": 12,
  },
  "full": {
    **_FULL,
    "cells": _cells({360: 8, 120: 16, 40: 36}, {}),
    "arms": (*_FULL["arms"], _variant("prox-linear", (), _PROX)),
    "seeds": (0, 1, 2, 3, 4),
    "trials": 6,
    "points": 24,
    "epochs": 1.2,  # The baselines' runs at the largest batch.
  },
}
