"""Adds a toy to the seam that it is for, and runs programs of `lm`.

    python tests/lm/toys/start.py TOY PROGRAM [FLAGS] [and PROGRAM [FLAGS]] ...

With DIE_AT in the environment, the training kills itself by SIGKILL once the
checkpoint of that update is on the disk.
"""

import importlib
import itertools
import os
import signal
import sys

from lm.cli import program


def main() -> int:
  """Runs the programs until one fails; returns the exit code."""
  toy, *words = sys.argv[1:]
  importlib.import_module(toy)
  if at := os.environ.get("DIE_AT"):
    from lm.train import jobs

    save = jobs.save

    def save_and_die(session):
      saved = save(session)
      if session.clock.step == int(at):
        session.checkpointer.wait()
        os.kill(os.getpid(), signal.SIGKILL)
      return saved

    jobs.save = save_and_die
  code = 0
  for name, *flags in split(words):
    code = code or importlib.import_module(f"lm.{name}").main(flags)
  return code


def split(words):
  """The words between each two "and"."""
  at = [-1, *(i for i, word in enumerate(words) if word == "and"), len(words)]
  return [words[a + 1 : b] for a, b in itertools.pairwise(at)]


if __name__ == "__main__":
  program.start(main)
