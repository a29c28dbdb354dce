"""Errors of the user's making, and the exit codes of all programs.

A program prints the message of these errors without a traceback. After the
codes PREEMPTED and PEER_LOST the same command goes on.
"""

from collections.abc import Iterator

BAD_INPUT = 2
NOT_FINITE = 3  # Stopped on a non-finite loss.
DISK = 74  # The disk failed.
PREEMPTED = 75  # Told to stop, and saved.
PEER_LOST = 76  # Another process of the run was lost.


class InputError(ValueError):
  """Something the user gave is wrong; the message is all there is to say."""


class ConfigError(InputError):
  """Problems of a configuration, one a line."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
  """The error, and what it was raised from or while handling."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
