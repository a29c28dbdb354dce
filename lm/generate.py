r"""Continues texts with a trained model.

    python -m lm.generate --workdir=RUN --prompt="My fellow citizens" \
        [--num_tokens=120] [--temperature=0.8] [--samples=3]

The prompts of a batch are decoded together, padded at the end, into a cache of
fixed size; then a scan adds one token at a time to all rows. A row that
reaches the end of its document is done and gets padding from there on.

Dimension key: B rows, T tokens of the longest prompt, S new tokens, V
vocabulary, 1 as in B1: one position.
"""

import argparse
import sys
from collections.abc import Sequence

from .cli import allocator, program
from .config import errors

if __name__ == "__main__":
  allocator.settle()  # Before jax allocates anything.
  program.quiet()
  program.use_compilation_cache()

import jax

from .eval import sampler
from .processes import distributed, peers
from .runs import weights


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.generate", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("--workdir", required=True, help="folder of a run")
  parser.add_argument("--prompt", default="", help="beginning of the text")
  parser.add_argument("--samples", type=int, default=1, help="how many texts")
  parser.add_argument("--num_tokens", type=int, default=120)
  parser.add_argument(
    "--temperature", type=float, default=0.8, help="0: the most likely token"
  )
  parser.add_argument("--top_k", type=int, default=0, help="0: all tokens")
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--step", type=int, help="checkpoint; default the newest")
  distributed.add_arguments(parser)
  parser.add_argument(
    "--average", metavar="NAME", help="of config.optim.averages, to sample"
  )
  args = parser.parse_args(argv)
  try:
    with peers.joined(
      args.distributed,
      args.coordinator,
      args.num_processes,
      args.process_id,
      tell=program.tell,
    ):
      texts = _generate_from_run(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.BAD_INPUT
  if jax.process_index() == 0:
    for i, text in enumerate(texts, 1):
      print(f"--- {i} ---\n{text}" if len(texts) > 1 else text)
  return 0


def _generate_from_run(args: argparse.Namespace) -> list[str]:
  parts, params = weights.open_run(
    args.workdir, args.step, average=args.average
  )
  with jax.set_mesh(parts.mesh):
    return sampler.sample_texts(
      parts,
      params,
      prompts=[args.prompt] * args.samples,
      num_tokens=args.num_tokens,
      key=jax.random.key(args.seed),
      temperature=args.temperature,
      top_k=args.top_k,
      top_p=args.top_p,
    )


if __name__ == "__main__":
  sys.exit(main())
