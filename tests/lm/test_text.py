"""Numbers as people read them."""

import pytest

from lm.cli import text


@pytest.mark.parametrize(
  ("number", "expected"),
  [
    (0, "0"), (987, "987"), (999.7, "1.00k"), (12_345, "12.3k"),
    (4_194_304, "4.19M"), (151e6, "151M"), (3.276e9, "3.28B"), (5e15, "5000T"),
    (-2_500, "-2.50k"),
  ],
)  # fmt: skip
def test_human(number, expected):
  assert text.human(number) == expected


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (13506, "3:45:06"),
   (2 * 86400 + 13506, "2d 03:45"), (-3, "0:00")],
)  # fmt: skip
def test_clock_text(seconds, expected):
  assert text.clock_text(seconds) == expected


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [(-3, "0 s"), (0.4, "0 s"), (45, "45 s"), (59.6, "1 min 0 s"),
   (190, "3 min 10 s"), (7_530, "2 h 5 min"), (86_399, "23 h 59 min"),
   (3 * 86_400 + 14_500, "3 d 4 h")],
)  # fmt: skip
def test_duration(seconds, expected):
  assert text.duration(seconds) == expected


def test_a_table_aligns_its_first_column_left_and_the_others_right():
  table = text.format_table(["run", "loss"], [["a", "10.5"], ["long", "9"]])
  assert table.splitlines() == [
    "run   loss", "----  ----", "a     10.5", "long     9",
  ]  # fmt: skip
