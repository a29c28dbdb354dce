"""Texts sampled at the end of a run."""

import jax

from ..eval.sampler import sample_texts
from .session import Session


def show(s: Session) -> None:
  """Prints what `config.log.samples` asks for; process 0 alone prints."""
  log = s.parts.config.log
  if not log.samples:
    return
  texts = sample_texts(
    s.parts,
    s.evaluator.point(s.state),
    prompts=[""] * log.samples,
    num_tokens=log.sample_tokens,
    key=jax.random.key(s.parts.config.seed),
    temperature=0.8,
  )
  for i, text in enumerate(texts, 1):
    s.progress.log(f"--- sample {i} ---\n{text}")
