r"""What a run would take: time, chip-hours and cost, from its configuration.

    python -m lm.tools.estimate --config=ml_collections_configs/olmo150m.py \
        --chip=v4,v5e --chips=16 --mfu=0.3,0.4 --price=2.5,1.5

    hours = tokens * FLOPs per token / (chips * peak FLOP/s * MFU) / 3600

FLOPs are from `lm/step/flops.py`, peaks from `lm/step/chips.py`. The
utilisation (MFU) is an assumption. Compilation, evaluation, checkpoints and
waiting for data are not counted. Neither is the optimiser's own work, which is
small for AdamW, but not for matrix methods and Gauss-Newton. Each combination
of the lists is a row. --price has one price of a chip-hour for each --chip, in
any currency.
"""

import itertools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..cli import flags, program
from ..cli.flags import Flag
from ..cli.text import format_table, human
from ..config import load, ramp
from ..config.errors import ConfigError, InputError
from ..config.schema import Config
from ..model import params as param_table
from ..runs import branch
from ..step import build, chips, flops

# Peaks of a chip, FLOP/s; not of a v3, whose chips are two devices.
PEAKS = {
  name: kind.flops
  for name, kind in chips.KINDS.items()
  if kind.flops and name != "v3"
}
_BYTES_VOCABULARY = 258


class Work(NamedTuple):
  """What a configuration computes."""

  parameters: param_table.Counts  # By place.
  updates: int  # Of the whole run; of a branch, those of its own.
  tokens: int  # Targets of them.
  flops_per_token: float  # Of a training step, without recomputation.


class Estimate(NamedTuple):
  """What that takes on some hardware."""

  chip: str  # A key of `PEAKS`.
  chips: int  # How many.
  mfu: float  # Assumed share of their peak.
  tokens_per_s: float  # Over all chips.
  hours: float  # Of training alone.


def resolve(config: Config, platform: str) -> Config:
  """`config.resolve` without the prepared data, if the vocabulary is known.

  Args:
    config: Validated, not resolved.
    platform: cpu | gpu | tpu.

  Raises:
    ConfigError: If only the tokenizer's file knows the vocabulary.
  """
  trained = {"bpe": config.data.vocab_size, "bytes": _BYTES_VOCABULARY}
  vocab_size = config.model.V or trained.get(config.data.tokenizer)
  if not vocab_size:
    raise ConfigError(
      f"config.model.V=0 takes the vocabulary of config.data.tokenizer="
      f"{config.data.tokenizer}; pass its size, e.g. --config.model.V=32100."
    )
  return load.resolve(
    config, vocab_size=vocab_size, eos_id=0, pad_id=0, platform=platform
  )


def work(config: Config) -> Work:
  """Counts a run.

  Raises:
    ConfigError: If only the tokenizer's file knows the vocabulary.
  """
  config = branch.resolve(config)
  model, made = resolve(config, "tpu").model, config.train
  phases, steps = ramp.of_config(config), ramp.num_steps(config)
  tokens = ramp.tokens_at(phases, config.data.seq_length, steps)
  return Work(
    param_table.count_params(model),
    steps - made.branch_step,
    tokens - made.branch_tokens,
    flops.train_flops_per_token(model),
  )


def estimate(todo: Work, chip: str, number: int, mfu: float) -> Estimate:
  """Time of a run on some hardware, at an assumed utilisation.

  Args:
    todo: From `work`.
    chip: A key of `PEAKS`.
    number: Of chips, >= 1.
    mfu: Share of the bfloat16 peak, in (0, 1].

  Raises:
    ValueError: If an argument is out of its range.
  """
  if chip not in PEAKS:
    raise ValueError(f"--chip={chip} is none of {', '.join(PEAKS)}.")
  if number < 1:
    raise ValueError(f"--chips={number} must be >= 1.")
  if not 0 < mfu <= 1:
    raise ValueError(f"--mfu={mfu} must be in (0, 1], e.g. 0.4.")
  rate = number * PEAKS[chip] * mfu / todo.flops_per_token
  return Estimate(chip, number, mfu, rate, todo.tokens / rate / 3600)


def table(
  todo: Work, rows: Sequence[Estimate], prices: Mapping[str, float]
) -> str:
  """The work in two lines, then a row for each estimate.

  Args:
    todo: From `work`.
    rows: From `estimate`.
    prices: Of an hour of each chip; without any, costs are left out.
  """
  counts, total = todo.parameters, todo.flops_per_token * todo.tokens
  header = [
    "chip", "chips", "peak TFLOP/s", "MFU", "tokens/s", "ms/update", "hours",
    "chip-hours",
  ]  # fmt: skip
  if prices:
    header.append("cost")
  lines = []
  for row in rows:
    seconds = row.hours * 3600 / todo.updates
    cells = [
      row.chip, f"{row.chips}", f"{PEAKS[row.chip] / 1e12:g}", f"{row.mfu:g}",
      human(row.tokens_per_s), f"{1000 * seconds:.0f}", f"{row.hours:.2f}",
      f"{row.hours * row.chips:.1f}",
    ]  # fmt: skip
    if prices:
      cells.append(f"{row.hours * row.chips * prices[row.chip]:.2f}")
    lines.append(cells)
  return (
    f"{human(counts.total)} parameters ({human(counts.body)} in the body), "
    f"{todo.updates} updates, {human(todo.tokens)} tokens\n"
    f"{todo.flops_per_token / 1e9:.3f} GFLOP a token, {total:.3g} FLOP in all"
    f"\n\n{format_table(header, lines)}"
  )


def _numbers(name: str, texts: Sequence[str], kind: type) -> Iterator[float]:
  for text in texts:
    try:
      yield kind(text)
    except ValueError:
      raise ValueError(f"--{name}={text!r} is not a number.") from None


_FLAGS = (
  flags.CONFIG,
  Flag("chip", list, f"of {', '.join(PEAKS)}", ["v5e"]),
  Flag("chips", list, "how many of them", ["16"]),
  Flag("mfu", list, "assumed shares of the peak", ["0.4"]),
  Flag("price", list, "of an hour of each --chip", []),
)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prints the estimates."""
  todo = work(load.from_config_dict(args.config, build.problems))
  numbers = [int(n) for n in _numbers("chips", args.chips, int)]
  mfus = list(_numbers("mfu", args.mfu, float))
  prices = list(_numbers("price", args.price, float))
  if prices and len(prices) != len(args.chip):
    raise InputError(
      f"--price={','.join(args.price)} must have one price for each of "
      f"--chip={','.join(args.chip)}."
    )
  rows = [
    estimate(todo, chip, number, mfu)
    for chip, number, mfu in itertools.product(args.chip, numbers, mfus)
  ]
  print(table(todo, rows, dict(zip(args.chip, prices, strict=False))))


if __name__ == "__main__":
  program.start(main)
