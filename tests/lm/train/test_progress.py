"""The display says the right numbers at the right times."""

import io

import pytest

from lm.train import progress


class Clock:
  """Seconds that pass only when told."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_plain_lines_show_loss_speed_and_time_left():
  clock, stream = Clock(), io.StringIO()
  shown = progress.PlainProgress(100, 0, stream, interval=10.0, clock=clock)
  for step in range(1, 31):  # One step of 500 tokens a second.
    shown.update(step, 500 * step, loss=4.0 - step / 100)
    clock.now += 1.0
  lines = stream.getvalue().splitlines()
  assert [line.split(",")[0] for line in lines] == [
    "step 1/100 (1%)", "step 11/100 (11%)", "step 21/100 (21%)",
  ]  # fmt: skip
  assert lines[0].endswith("loss 3.9900, ETA ?")
  assert lines[1].endswith("loss 3.8900, 500 tokens/s, ETA 1:29")


def test_the_time_before_the_first_update_does_not_count():
  clock, stream = Clock(), io.StringIO()
  shown = progress.PlainProgress(100, 0, stream, interval=0.0, clock=clock)
  clock.now += 1000.0  # Compilation.
  shown.update(1, 500)
  clock.now += 2.0
  shown.update(2, 1000)
  assert stream.getvalue().splitlines()[1].endswith("250 tokens/s, ETA 3:16")


def test_speed_forgets_what_is_over_two_minutes_old():
  clock, stream = Clock(), io.StringIO()
  shown = progress.PlainProgress(10_000, 0, stream, interval=0.0, clock=clock)
  shown.update(1, 0)
  clock.now += 500.0  # A stall.
  for step in range(2, 400):
    shown.update(step, 10 * step)
    clock.now += 1.0
  assert ", 10 tokens/s," in stream.getvalue().splitlines()[-1]


def test_the_last_step_is_shown_once_even_if_not_due():
  clock, stream = Clock(), io.StringIO()
  shown = progress.PlainProgress(3, 0, stream, interval=10.0, clock=clock)
  for step in (1, 2, 3):
    shown.update(step, step)
  text = stream.getvalue()
  assert [line.split()[1] for line in text.splitlines()] == ["1/3", "3/3"]
  shown.close()
  assert stream.getvalue() == text


def test_closing_early_shows_where_the_run_stopped():
  clock, stream = Clock(), io.StringIO()
  shown = progress.PlainProgress(9, 4, stream, interval=10.0, clock=clock)
  shown.update(5, 1)
  shown.update(6, 2, loss=1.5)
  shown.close()
  assert stream.getvalue().splitlines()[-1].startswith("step 6/9 (67%), loss")


@pytest.mark.parametrize(
  ("kind", "stream", "expected"),
  [
    ("auto", Terminal, progress.BarProgress),
    ("auto", io.StringIO, progress.PlainProgress),
    ("plain", Terminal, progress.PlainProgress),
    ("bar", io.StringIO, progress.BarProgress),
    ("none", Terminal, progress.NoProgress),
  ],
)
def test_kind_and_stream_choose_the_display(kind, stream, expected):
  shown = progress.make_progress(kind, 10, stream=stream())
  assert type(shown) is expected
  shown.close()


def test_only_process_zero_shows_anything(monkeypatch):
  monkeypatch.setattr(progress.jax, "process_index", lambda: 2)
  shown = progress.make_progress("bar", 10, stream=Terminal())
  assert type(shown) is progress.NoProgress


def test_an_unknown_kind_lists_the_known_ones():
  with pytest.raises(ValueError, match="log.progress='fancy'.*'plain'"):
    progress.make_progress("fancy", 10)


def test_the_bar_resumes_where_the_run_does_and_shows_the_loss():
  stream = Terminal()
  bar = progress.make_progress("bar", 10, start_step=4, stream=stream)
  assert "step 4/10, compiling" in stream.getvalue()
  bar.update(5, 100, loss=2.25)
  bar.log("a message")
  bar.close()
  assert "\na message\n" in stream.getvalue().replace("\r", "\n")
  assert "step 5/10, loss 2.2500" in stream.getvalue()
