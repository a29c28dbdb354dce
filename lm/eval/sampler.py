"""Continuations of texts, as the objective of a run draws them.

Dimension key: B rows, S new tokens.
"""

from collections.abc import Sequence
from typing import Any

import jax

from ..config.errors import InputError
from ..data import tokenizer as tokenizers
from ..objectives import table as objectives
from ..objectives.decoding import Sampling
from ..step.parts import Parts


def sample_texts(
  parts: Parts,
  params: Any,
  *,
  prompts: Sequence[str],
  num_tokens: int,
  key: jax.Array,
  sampling: Sampling = Sampling(),  # noqa: B008
) -> list[str]:
  """Draws a continuation of each text; the mesh must be entered.

  Args:
    parts: Of a run; its configuration names the tokenizer.
    params: Weights as the model sees them.
    prompts: Beginnings of documents, maybe empty.
    num_tokens: Tokens to add to each.
    key: Of the draws.
    sampling: How each token is drawn.

  Returns:
    The texts, each with its prompt.

  Raises:
    InputError: If the objective of the run cannot sample.
  """
  objective = objectives.chosen(parts.config)
  if line := objective.cannot_sample():
    raise InputError(line)
  tokenizer = tokenizers.load(parts.config.data)
  ids = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in prompts]
  new_BS = objective.sample(parts.model, params, ids, num_tokens, key, sampling)
  return [
    tokenizer.decode([*old, *new.tolist()])
    for old, new in zip(ids, new_BS, strict=True)
  ]
