"""Our transforms for the authors' settings; see `authors.py`."""

from oracles.authors_built import Built, Setup

import optim

_SHARED = ("b1", "weight_decay", "warmup_steps", "r", "weight_lr_power")


def _schedule_free_adamw(setup: Setup) -> Built:
  variant = "paper" if setup.settings["method"].endswith("paper") else "1.3"
  return Built(
    optim.schedule_free_adamw(
      setup.learning_rate,
      decay_at=_decay_at(setup),
      variant=variant,
      **setup.pick(*_SHARED, "b2", "eps"),
    )  # fmt: skip
  )


def _schedule_free_sgd(setup: Setup) -> Built:
  return Built(
    optim.schedule_free_sgd(
      setup.learning_rate,
      decay_at=_decay_at(setup),
      **setup.pick(
        "b1", "weight_decay", "warmup_steps", "r", "weight_lr_power"
      ),
    )
  )


def _decay_at(setup: Setup) -> str:
  return "z" if setup.settings.get("decay_at_z") else "y"


METHODS = {
  "schedule_free_adamw": _schedule_free_adamw,
  "schedule_free_adamw_paper": _schedule_free_adamw,
  "schedule_free_adamw_reference": _schedule_free_adamw,
  "schedule_free_sgd": _schedule_free_sgd,
}
LAYOUTS = {}
