"""The leaderboard: every method beside AdamW's own curve.

    python -m lm.study leaderboard --jobs=2
    python -m lm.study leaderboard --tier=full --jobs=2

Runs end with a rate of 0 at their horizon, except those of methods that bring
an average or a schedule of their own. AdamW is run at other horizons as well:
a speed-up is the horizon at which AdamW has a method's loss.
"""

from typing import Any

Plain = dict[str, Any]

_DECAY = {"schedule.name": "linear", "schedule.end_factor": 0.0}
_RUN = {**_DECAY, "checkpoint.every": 0, "eval.final_batches": 16}
_THIRD = {"model.D": 80, "model.F": 320}  # 0.3M parameters in the blocks.
_THREE = {"model.D": 256, "model.F": 1024, "model.H": 4, "model.G": 4}

_HELD = {"data.mixture": (("stdlib", 1.0),), "eval.sets": ("stdlib",)}
_SURVEY = (
  "adamw", "lion", "ademamix", "mars", "schedule_free", "muon", "normuon",
  "muon_h", "shampoo", "soap", "soap_h", "kl_soap", "soap_muon", "gauss_newton",
)  # fmt: skip
_ALL = (*_SURVEY, "signum", "adafactor", "soap_1", "kl_shampoo", "nonlinear")
_STUDY: Plain = {
  "title": "Leaderboard",
  "overrides": _RUN,
  "arms": _ALL,
  "horizons": (0.5, 1, 2, 4),
  "claims": ({"claim": "faster", "threshold": 1 / 1.1},),
}


def _cell(rows: int, tokens: int, overrides: Plain, **more: Any) -> Plain:
  micro = {"train.microbatch_size": 16} if rows > 16 else {}
  changes = {**overrides, **micro}
  return {"batch": rows, "tokens": tokens, "overrides": changes, **more}


TIERS: dict[str, Plain] = {
  "small": {
    **_STUDY,
    "cells": {
      "0.3M, 4 rows": _cell(4, 250_000, _THIRD, group="0.3M"),
      "0.3M, 16 rows": _cell(16, 250_000, _THIRD, group="0.3M"),
    },
    "arms": _SURVEY,
    "seeds": (0, 1, 2),
    "trials": 6,
    "points": 6,
  },
  "full": {
    **_STUDY,
    "cells": {
      "0.3M, 4 rows": _cell(4, 500_000, _THIRD, group="0.3M"),
      "0.3M, 16 rows": _cell(16, 500_000, _THIRD, group="0.3M"),
      "0.3M, 64 rows": _cell(64, 500_000, _THIRD, group="0.3M"),
      "0.8M, 16 rows": _cell(16, 1_000_000, {}, group="0.8M"),
      "0.8M, 64 rows": _cell(64, 1_000_000, {}, group="0.8M"),
      "0.8M, 16 rows, code": _cell(
        16, 1_000_000, _HELD, group="code", settings_of="0.8M, 16 rows"
      ),
      "3M, 16 rows": _cell(
        16, 1_000_000, _THREE, group="3M", start_of="0.8M, 16 rows", trials=3
      ),
    },
    "auxiliary": True,
    "epochs": 1.6,  # AdamW's longest runs see their text once and a half.
    "seeds": (0, 1, 2, 3, 4),
    "trials": 9,
  },
  "pod": {
    **_STUDY,
    "config": "ml_collections_configs/olmo150m.py",
    "cells": {
      f"150M, {rows} rows": {
        "batch": rows, "tokens": 3_300_000_000, "group": "150M",
      }
      for rows in (256, 2048)
    },
    "overrides": _DECAY,
    "auxiliary": True,
    "seeds": (0, 1, 2, 3, 4),
    "trials": 5,
  },
}  # fmt: skip
