r"""The coordinate check: do the layers move alike at every width?

    python -m lm.tools.coordinates --method=muon
    python -m lm.tools.coordinates --config=ml_collections_configs/study1m.py \
        --config.model.H=8 --config.model.G=8 --widths=64,512

A few updates are made at several widths, with the rule of the method
(`optim.multipliers`, docs/transfer.md) and without. Printed is the root mean
square of the change of what the layers compute, over all seeds. If the rule is
right, the change does not depend on the width.

With --method the model is a network 32 -> D -> D -> D -> 10 with tanh on
made-up data. Printed are the exponents of D, which should be 0. With --config
the model is the decoder of that configuration, on its prepared data; heads keep
their size, and the first of --widths is the base model's. Printed are the
changes at each width, and the last over the first.
"""

import types
from collections.abc import Sequence

from optim.methods import scaling

from ..cli import flags, program
from ..cli.flags import Flag
from ..cli.text import format_table
from ..config import load
from ..config.errors import InputError
from ..processes import distributed
from ..step import build
from . import width_decoder, width_mlp

_FLAGS = (
  flags.CONFIG._replace(required=False),
  Flag("method", str, "of the network", choices=tuple(width_mlp.CASES)),
  Flag("rule", str, "of the decoder's hidden matrices; default: the method's",
       choices=tuple(scaling.RULES)),
  Flag("widths", list, "D", ["64", "128", "256"]),
  Flag("seeds", int, "draws of weights and data", 2, least=1),
  Flag("steps", int, "updates", 4, least=1),
)  # fmt: skip


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prints the table."""
  if (args.method is None) == (args.config is None):
    raise InputError(
      "Give --method=NAME for the network, or --config=FILE.py for the "
      "decoder, and not both."
    )
  widths = _widths(args.widths)
  distributed.widen_thread_pool()  # Several factorisations at once wait in it.
  if args.method is not None:
    if args.rule is not None:
      raise InputError(f"--rule={args.rule} is for the decoder of a --config.")
    print(network(args.method, widths, args.seeds, args.steps))
    return
  config = load.from_config_dict(args.config, build.problems)
  config = build.resolve(config, build.find_data(config))
  hidden = width_decoder.choice_of(config, "hidden")
  rule = args.rule or width_decoder.rule_of(hidden)
  found = width_decoder.check(
    config, (None, rule), widths=widths, seeds=args.seeds, steps=args.steps
  )
  print(decoder(hidden.name, rule, widths, found))


def network(method: str, widths: Sequence[int], seeds: int, steps: int) -> str:
  """The exponents of the four layers, with the rule and without."""
  case = width_mlp.CASES[method]
  rows = []
  for scaled in (False, True):
    found = width_mlp.check(
      case, scaled=scaled, widths=widths, seeds=seeds, steps=steps
    )
    name = f"{method}, rule {case.rule}" if scaled else f"{method}, no rule"
    rows.append([name, *(f"{slope:+.2f}" for slope in found.slopes)])
  return format_table(["exponent of D", *width_mlp.LAYERS], rows)


def decoder(
  method: str,
  rule: str,
  widths: Sequence[int],
  found: Sequence[width_decoder.Changes],
) -> str:
  """The changes at each width, without the rule and with it."""
  kinds = ("no rule", f"rule {rule}")
  header = [method] + [
    f"{what}, {kind}" for kind in kinds for what in width_decoder.MEASURED
  ]
  rows = [
    [f"D = {width}", *(f"{x:.3f}" for f in found for x in f.sizes[i])]
    for i, width in enumerate(widths)
  ]
  rows.append(["last / first", *(f"{x:.2f}" for f in found for x in f.ratios)])
  return format_table(header, rows)


def _widths(given: Sequence[str]) -> list[int]:
  """The widths, which have to be at least two and grow.

  Raises:
    InputError: If they are not.
  """
  if not all(text.isdecimal() and int(text) > 0 for text in given):
    raise InputError(f"--widths={','.join(given)} must be whole numbers > 0.")
  widths = [int(text) for text in given]
  if len(widths) < 2 or widths != sorted(set(widths)):
    raise InputError(
      f"--widths={','.join(given)} must be two widths or more, from small to "
      "large, e.g. 64,128,256."
    )
  return widths


if __name__ == "__main__":
  program.start(main)
