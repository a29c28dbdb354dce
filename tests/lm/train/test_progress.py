"""The display says the right numbers at the right times."""

import datetime
import io
import types

import numpy as np
import pytest
import tqdm

from lm.runs import resume
from lm.step import build
from lm.train import progress, reporter


class Clock:
  """Seconds that pass only when told."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """The clock that tqdm reads."""
  clock = Clock()
  monkeypatch.setattr(tqdm.std, "time", clock)
  return clock


def _lines(num_steps, num_tokens, start=0):
  stream = io.StringIO()
  return stream, progress.Progress(
    "auto", num_steps, num_tokens, start_step=start, stream=stream
  )


def test_plain_lines_show_loss_speed_and_time_left(clock):
  stream, shown = _lines(100, 50_000)
  for step in range(1, 31):  # One step of 500 tokens a second.
    shown.update(step, 500 * step, loss=4.0 - step / 100)
    clock.now += 1.0
  lines = stream.getvalue().splitlines()
  assert [line.split(",")[0] for line in lines] == [
    "step 1/100 (1%)", "step 11/100 (11%)", "step 21/100 (21%)",
  ]  # fmt: skip
  assert lines[0].endswith("loss 3.9900, ? tokens/s, ETA ?")
  assert lines[1].endswith("loss 3.8900, 500 tokens/s, ETA 01:29")


def test_the_time_before_the_first_update_does_not_count(clock):
  stream, shown = _lines(100, 50_000)
  clock.now += 1000.0  # Compilation.
  shown.update(1, 500)
  clock.now += 20.0
  shown.update(2, 5500)
  assert stream.getvalue().splitlines()[1].endswith("250 tokens/s, ETA 02:58")


def test_speed_forgets_a_stall(clock):
  stream, shown = _lines(10_000, 100_000)
  shown.update(1, 0)
  clock.now += 500.0  # A stall.
  for step in range(2, 400):
    shown.update(step, 10 * step)
    clock.now += 1.0
  assert ", 10.0 tokens/s," in stream.getvalue().splitlines()[-1]


def test_the_last_step_is_shown_once_even_if_not_due(clock):
  stream, shown = _lines(3, 3)
  for step in (1, 2, 3):
    shown.update(step, step)
  for _ in range(2):
    shown.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]


def test_closing_early_shows_where_the_run_stopped(clock):
  stream, shown = _lines(9, 9, start=4)
  shown.update(5, 1)
  shown.update(6, 2, loss=1.5)
  shown.close()
  assert stream.getvalue().splitlines()[-1].startswith("step 6/9 (67%), loss")


def test_lines_of_the_run_stand_between_those_of_the_steps(clock):
  stream, shown = _lines(9, 9)
  shown.log("a message")
  shown.update(1, 1)
  shown.log("another")
  first, second, third = stream.getvalue().splitlines()
  assert (first, second[:8], third) == ("a message", "step 1/9", "another")


@pytest.mark.parametrize(
  ("kind", "stream", "bar"),
  [
    ("auto", Terminal, True),
    ("auto", io.StringIO, False),
    ("plain", Terminal, False),
    ("bar", io.StringIO, True),
  ],
)
def test_kind_and_stream_choose_the_display(kind, stream, bar):
  stream = stream()
  shown = progress.Progress(kind, 10, 10, stream=stream)
  shown.update(1, 1)
  shown.close()
  assert ("\r" in stream.getvalue()) == bar
  assert "step 1/10" in stream.getvalue()


def _silent(kind):
  stream = Terminal()
  shown = progress.Progress(kind, 10, 10, stream=stream)
  shown.update(1, 1, loss=2.0)
  shown.log("a message")
  shown.close()
  return stream.getvalue() == ""


def test_none_shows_nothing():
  assert _silent("none")


def test_only_process_zero_shows_anything(monkeypatch):
  assert not _silent("bar")
  monkeypatch.setattr(progress.jax, "process_index", lambda: 2)
  assert _silent("bar")


def test_the_bar_resumes_where_the_run_does_and_shows_the_loss():
  stream = Terminal()
  bar = progress.Progress(
    "bar", 10, 1000, start_step=4, start_tokens=400, stream=stream
  )
  assert "step 4/10, compiling" in stream.getvalue()
  assert " 40%" in stream.getvalue()
  bar.update(5, 500, loss=2.25)
  bar.log("a message")
  bar.close()
  assert "\na message\n" in stream.getvalue().replace("\r", "\n")
  assert "step 5/10 (50%), loss 2.2500" in stream.getvalue()


def _at(monkeypatch, *now):
  """Makes the time of the day that of the arguments."""

  class Fixed(datetime.datetime):
    @classmethod
    def now(cls):
      return datetime.datetime(*now)

  fixed = types.SimpleNamespace(datetime=Fixed, timedelta=datetime.timedelta)
  monkeypatch.setattr(progress, "datetime", fixed)


@pytest.mark.parametrize(
  ("hour", "until"), [(21, "21:13"), (23, "2026-03-01 00:00")]
)
@pytest.mark.parametrize("kind", ["plain", "bar"])
def test_the_time_left_is_told(monkeypatch, kind, hour, until):
  _at(monkeypatch, 2026, 2, 28, hour, 10 if hour == 21 else 57, 0)
  stream = io.StringIO()
  shown = progress.Progress(kind, 100, 50_000, stream=stream)
  shown.update(40, 20_000)
  shown.foresee(20_000, 5_000, 31.5)  # 30,000 more, at 158.7 a second.
  shown.foresee(50_000, 5_000, 31.5)  # Nothing is left to tell.
  assert stream.getvalue().count("to go") == 1
  told = f"About 3 min 9 s of training to go, until {until}; evaluations"
  assert told in stream.getvalue()


def test_the_time_left_is_told_once_and_leaves_out_pauses(
  tiny, monkeypatch, clock
):
  config = tiny.config(log__every=7, mesh__data=8)
  parts = build.build(build.resolve(config, build.find_data(config)))
  told = []
  shown = types.SimpleNamespace(
    update=lambda *_: None, foresee=lambda *a: told.append(a)
  )
  for module in (reporter, resume):
    time = types.SimpleNamespace(monotonic=clock)
    monkeypatch.setattr(module, "time", time)
  began = now = resume.Clock(100, 1000, 32_000, 50.0)  # Resumed there.
  writer = types.SimpleNamespace(write=lambda *_: None)
  said = reporter.Reporter(
    parts, writer, shown, resume.Stopwatch(began.seconds), began
  )
  clock.now += 1000.0  # Compilation.
  said.start(began)
  halted = {"halted": np.array(False), "step": np.array(0)}
  for _ in range(60):  # A step of 320 tokens takes 2 seconds.
    clock.now += 2.0
    now = now.advance(10, 32)
    said.push(now, halted, 0.0)
    if now.step == 110:
      with said.paused(now):
        clock.now += 500.0  # An evaluation.
  # Step 126 is the first 20 later that is logged; it is known to be done when
  # step 127 has been handed over.
  assert told == [(32_000 + 26 * 320, 26 * 320, 54.0)]
