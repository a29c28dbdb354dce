r"""Continues texts with a trained model.

    python -m lm.generate --workdir=RUN --prompt="My fellow citizens" \
        [--num_tokens=120] [--temperature=0.8] [--samples=3]

The prompts are padded at the end and decoded together, into a cache of fixed
size. Then a scan adds one token at a time to all rows. A row that has reached
the end of its document gets padding.
"""

import types

from .cli import flags, program
from .cli.flags import Flag

_FLAGS = (
  flags.WORKDIR,
  flags.STEP,
  Flag("prompt", str, "beginning of the text", ""),
  Flag("samples", int, "how many texts", 1, least=1),
  Flag("num_tokens", int, "of each text, after the prompt", 120, least=1),
  Flag("temperature", float, "0: the most likely token", 0.8, least=0),
  Flag("top_k", int, "only the most likely ones; 0: all tokens", 0, least=0),
  Flag("top_p", float, "only the most likely ones, of this mass", 1.0),
  flags.SEED,
  Flag("average", str, "of config.optim.averages, to sample"),
  *flags.DISTRIBUTED,
)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prints the texts."""
  import jax

  from .processes import peers

  with peers.joined(args, program.tell):
    texts = _texts(args)
  if jax.process_index() == 0:
    for i, text in enumerate(texts, 1):
      print(f"--- {i} ---\n{text}" if len(texts) > 1 else text)


def _texts(args: types.SimpleNamespace) -> list[str]:
  import jax

  from .eval import sampler
  from .objectives.decoding import Sampling
  from .runs import weights

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
      sampling=Sampling(args.temperature, args.top_k, args.top_p),
    )


if __name__ == "__main__":
  program.start(main)
