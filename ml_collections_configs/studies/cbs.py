"""The critical batch size: steps to a loss by batch, the rate constant.

    python -m lm.study cbs --jobs=2

The averaged weights are scored. Averages of weights and of squared gradients
remember the same tokens at each batch, b2 within [.95, .999] and the weights'
average within .8 at least. Runs are long enough for every batch to reach the
targets if b / a is 15 rows. "One rate" is the published protocol: the rate of
the reference batch. The other columns tune the rate at each batch.

Source: https://arxiv.org/abs/2410.21676. The published exponents of the batch
in data are .47 by the paper's definition, and .62 of b / a on its counts.
"""

from typing import Any

Plain = dict[str, Any]

_RATIO = 15  # Rows: b / a as a first run has it at 0.3M parameters.
_MORE = 1.1  # Tokens of a run over those that reach b.
_WIDTHS = {"0.3M": 80, "0.8M": 128, "1.8M": 192}  # Parameters of the blocks.
_RATE = {"learning_rate": 3e-3}


def _cells(model: str, batches: tuple[int, ...], least: int) -> Plain:
  """Cells of a model; `least` is b in tokens, the data that a loss needs."""
  width, cells, above = _WIDTHS[model], {}, ""
  for rows in batches:
    share = rows * 1024 / least  # Of an average that remembers b / 4.
    name = f"{model}, {rows} rows"
    cells[name] = {
      "batch": rows,
      "tokens": round(_MORE * least * (1 + rows / _RATIO)),
      "group": model,
      "size": 12 * width**2 * 4,
      "start_of": above,
      "kwargs": {
        "b1": 0.95, "b2": round(min(0.999, max(0.95, 1 - share)), 4),
        "weight_decay": 0.0,
      },
      "overrides": {
        "model.D": width, "model.F": 4 * width,
        "train.microbatch_size": min(rows, 16),
        "optim.averages": (f"ema:{1 - min(0.2, share):.4g}",),
        # A quarter of a, the least number of steps.
        "schedule.unit": "steps", "schedule.warmup": least // _RATIO // 1024,
      },
    }  # fmt: skip
    above = name
  return cells


def _arms(reference: str, cells: tuple[str, ...] = ()) -> tuple[Plain, ...]:
  adamw = {"method": "adamw", "tuned": _RATE}
  one = {"name": "adamw, one rate", "settings_of": ("adamw", reference)}
  return adamw, {**adamw, **one, "cells": cells}


# b / a moves by at most a quarter from 0.3M to 1.8M parameters.
_FLAT = {
  "claim": "exponent", "arm": "adamw", "against": "size", "centre": 0.0,
  "tolerance": 0.125,
}  # fmt: skip


def _law(arm: str) -> tuple[Plain, ...]:
  law = {"claim": "exponent", "arm": arm, "tolerance": 0.12}
  return {**law, "centre": 0.47, "of": "paper"}, {**law, "centre": 0.62}


_STUDY: Plain = {
  "title": "Critical batch size",
  "overrides": {
    "schedule.name": "constant", "checkpoint.every": 0, "eval.final_batches": 4,
  },
  "scores": {"averaged": "avg/*/loss"},
  "claims": (*_law("adamw, one rate"), *_law("adamw")),
  "targets": (0.4, 0.55, 0.75, 0.9),
  "reference_batch": 4,
  "trials": 4,
}  # fmt: skip
_POWERS = (1, 2, 4, 8, 16, 32, 64)
_FIRST = _cells("0.3M", _POWERS, 400_000)

TIERS: dict[str, Plain] = {
  "small": {
    **_STUDY,
    "cells": _cells("0.3M", _POWERS[1:], 150_000),
    "arms": _arms("0.3M, 4 rows"),
    "seeds": (0, 1, 2),
    "points": 24,
  },
  "full": {
    **_STUDY,
    "cells": {
      **_FIRST,
      **_cells("0.8M", _POWERS, 400_000),
      **_cells("1.8M", _POWERS, 400_000),
    },
    "arms": (
      *_arms("0.3M, 4 rows", tuple(_FIRST)),
      {"method": "soap", "tuned": _RATE, "cells": tuple(_FIRST)},
      {
        "method": "muon", "tuned": {"learning_rate": 1.2e-2},
        "cells": tuple(_FIRST),
      },
    ),
    "claims": (*_STUDY["claims"], _FLAT),
    "seeds": (0, 1, 2, 3, 4),
    "points": 60,
  },
  # The paper's pairs of rows and steps, its rates, averages and rows of 512.
  "pod": {
    **_STUDY,
    "config": "ml_collections_configs/cbs151m.py",
    "overrides": {},
    "cells": {
      f"151M, {rows} rows": {
        "batch": rows, "tokens": rows * steps * 512, "group": "151M",
        "kwargs": {"b1": 0.95, "b2": 0.99, "weight_decay": 0.0},
        "overrides": {"train.microbatch_size": min(rows, 1024)},
      }
      for rows, steps in (
        (64, 160_000), (128, 60_000), (256, 27_000), (512, 12_850),
        (1024, 7_200), (2048, 5_000), (4096, 4_200), (8192, 3_700),
      )
    },
    "arms": (
      {"method": "adamw", "tuned": {"learning_rate": 3.16e-3}},
      {
        "method": "adamw", "name": "adamw, one rate",
        "tuned": {"learning_rate": 3.16e-3},
        "settings_of": ("adamw", "151M, 256 rows"),
      },
    ),
    "reference_batch": 256,
    "seeds": (0, 1, 2),
    "points": 200,
  },
}  # fmt: skip
