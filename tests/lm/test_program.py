"""What the programs say, and what they keep to themselves."""

import subprocess
import sys

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
