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
    )
  )


def _schedule_free_sgd(setup: Setup) -> Built:
  return Built(
    optim.schedule_free_sgd(
      setup.learning_rate,
      decay_at=_decay_at(setup),
      **setup.pick(*_SHARED),
    )
  )


def _decay_at(setup: Setup) -> str:
  return "z" if setup.settings.get("decay_at_z") else "y"


def _ademamix(setup: Setup) -> Built:
  return Built(
    optim.ademamix(
      setup.learning_rate,
      **setup.pick(
        "b1", "b2", "b3", "alpha", "alpha_warmup", "b3_warmup", "eps",
        "weight_decay",
      ),
    )
  )  # fmt: skip


def _simplified_ademamix(setup: Setup) -> Built:
  return Built(
    optim.simplified_ademamix(
      setup.learning_rate,
      **setup.pick(
        "b1", "b2", "alpha", "b1_warmup", "min_b1", "eps", "weight_decay",
        "bias_correction1", "bias_correction2",
      ),
    )
  )  # fmt: skip


METHODS = {
  "ademamix": _ademamix,
  "simplified_ademamix": _simplified_ademamix,
  "schedule_free_adamw": _schedule_free_adamw,
  "schedule_free_adamw_paper": _schedule_free_adamw,
  "schedule_free_adamw_reference": _schedule_free_adamw,
  "schedule_free_sgd": _schedule_free_sgd,
}
LAYOUTS = {}
