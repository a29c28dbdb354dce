"""What the programs say, and what they keep to themselves."""

import errno
import os
import subprocess
import sys

import pytest

from lm.cli import program
from lm.config import errors
from lm.config.errors import ConfigError

_LATE_WRITE = """
import asyncio, sys, threading
import tensorstore
from lm.cli import program

program.quiet()
promise, future = tensorstore.Promise.new()


async def wait():
  await future


async def start():
  global task
  task = asyncio.ensure_future(wait())
  await asyncio.sleep(0.01)


loop = asyncio.new_event_loop()
loop.run_until_complete(start())
loop.close()
writer = threading.Thread(target=promise.set_result, args=(1,))
writer.start()
writer.join()


class Other:
  def __del__(self):
    raise RuntimeError(sys.argv[1])


other = Other()
del other
"""


def test_writes_that_outlive_a_failed_save_print_nothing():
  run = subprocess.run(
    [sys.executable, "-c", _LATE_WRITE, "worth telling"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "loop is closed" not in run.stderr
  assert "worth telling" in run.stderr


def _caused(error, cause):
  error.__cause__ = cause
  return error


def _while_handling(error, context):
  error.__context__ = context
  return error


_FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (ConfigError("config.seed=-1"), errors.BAD_INPUT),
    (FileNotFoundError(errno.ENOENT, "No such file"), errors.BAD_INPUT),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), errors.BAD_INPUT),
    (_FULL, errors.DISK),
    (OSError(errno.EFBIG, "File too large"), errors.DISK),
    (OSError(errno.EIO, "Input/output error"), errors.DISK),
    (_caused(ValueError("--workdir cannot be written"), _FULL), errors.DISK),
    (_while_handling(ValueError("closed file"), _FULL), errors.DISK),
    (RuntimeError("write() failed: No space left on device"), errors.DISK),
    (KeyboardInterrupt(), 130),
    (RuntimeError("a bug"), 1),
  ],
)
def test_codes_and_messages(monkeypatch, capsys, error, code):
  def fail(args):
    raise error

  assert program.takes(None, ())(fail)([]) == code
  said = capsys.readouterr().err
  if code == 1:
    assert said.startswith("Traceback")
  else:
    assert said == f"error: {str(error) or 'KeyboardInterrupt'}\n"
  monkeypatch.setenv("GOLDENPATH_TRACEBACK", "1")
  assert program.takes(None, ())(fail)([]) == code
  assert capsys.readouterr().err.startswith("Traceback")


def test_nobody_reads_what_is_printed():
  reader, writer = os.pipe()
  os.close(reader)  # Before the program starts, however fast it prints.
  try:
    command = [sys.executable, "-m", "lm.report", "--help"]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
  finally:
    os.close(writer)
  assert (process.returncode, process.stderr) == (141, b"")
