"""What the report says of runs whose numbers are known."""

import json
import math
import pathlib
import re

import numpy as np
import pytest
from matplotlib import image

from lm import report
from lm.runs import metrics, plots, read


def _make_run(folder, *, steps=100, offset=0.0, info=True, sets=("sotu",)):
  """Loss 8 - step / 25 + offset, 1000 tokens and 2 seconds a step."""
  writer = metrics.JsonlWriter(folder / "metrics.jsonl")
  for step in range(1, steps + 1):
    loss = 8 - step / 25 + offset
    line = {"tokens": 1000 * step, "seconds": 2.0 * step, "train/loss": loss}
    line |= {"train/learning_rate": 1e-3, "train/grad_norm": 1 + loss}
    for name in sets if step % 20 == 0 else ():
      line[f"eval/{name}/loss"] = loss + 0.5
      line[f"eval/{name}/stderr"] = 0.0125
      line[f"eval/{name}/bits_per_byte"] = 1.25
    writer.write(step, line)
  writer.close()
  if info:
    floors = {"unigram": 6.5, "trigram": 5.25, "bits_per_byte": 2.0}
    info = {"status": "finished", "parameters": {"total": 4_200_000}}
    info["floors"] = {name: floors for name in sets}
    (folder / "run.json").write_text(json.dumps(info))
  return folder


def test_tables_state_the_last_numbers(tmp_path, capsys):
  run = _make_run(tmp_path / "base")
  assert report.main([str(run)]) == 0
  lines = capsys.readouterr().out.splitlines()
  # The last 10 of 100 lines: steps 91 to 100, mean 8 - 95.5 / 25.
  expected = "base finished 4.20M 100 100k 3:20 4.1800"
  assert lines[2].split() == expected.split()
  expected = "sotu base 100 4.5000 ± 0.0125 1.2500 - 5.2500 (trigram)"
  assert lines[6].split() == expected.split()


def test_each_average_and_the_end_of_a_run_are_shown(tmp_path, capsys):
  run = _make_run(tmp_path / "base")
  writer = metrics.JsonlWriter(run / "metrics.jsonl")
  key = "eval/sotu/avg"
  writer.write(80, {f"{key}/age:25/loss": 5.0, f"{key}/ema:0.9/loss": 5.5})
  writer.write(
    100,
    {
      "eval/sotu/final_loss": 4.25,
      "eval/sotu/final_stderr": 0.01,
      f"{key}/age:25/final_loss": 4.125,
    },
  )
  writer.close()
  assert report.main([str(run)]) == 0
  row = capsys.readouterr().out.splitlines()[6]
  assert row.split()[2:6] == ["100", "4.2500", "±", "0.0100"]
  assert "age:25 4.1250, ema:0.9 -" in row  # The other is of another step.
  assert report.main([str(run), "--to=5.2", "--average=age:25"]) == 0
  assert capsys.readouterr().out.splitlines()[4].split()[:2] == ["base", "80"]


def test_a_run_of_earlier_code_is_shown_with_its_average(tmp_path, capsys):
  """And one that went on with today's code has one curve of it."""
  run = _make_run(tmp_path / "old")
  stored = {"optim": {"name": "adamw", "ema": 0.99, "kwargs": {}}}
  (run / "config.json").write_text(json.dumps(stored))
  writer = metrics.JsonlWriter(run / "metrics.jsonl")
  for step in (80, 100):
    writer.write(step, {"eval/sotu/ema_loss": 8 - step / 20})
  writer.write(120, {"eval/sotu/avg/ema:0.99/loss": 2.5})
  writer.close()
  columns = read.load_run(run).columns
  curve = columns["eval/sotu/avg/ema:0.99/loss"]
  assert curve.steps.tolist() == [80, 100, 120]
  assert curve.values.tolist() == [4.0, 3.0, 2.5]
  assert read.load_run(run).eval_sets() == ["sotu"]
  assert report.main([str(run), "--to=3.5", "--average=ema:0.99"]) == 0
  assert capsys.readouterr().out.splitlines()[4].split()[:2] == ["old", "90"]


def test_a_run_without_run_json_or_evaluations_is_still_shown(tmp_path, capsys):
  run = _make_run(tmp_path / "young", steps=3, info=False, sets=())
  assert report.main([str(run)]) == 0
  out = capsys.readouterr().out
  assert out.splitlines()[2].split()[:4] == ["young", "?", "?", "3"]
  assert "stderr" not in out


def test_default_folders_of_the_pictures(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  a, b = _make_run(tmp_path / "a"), _make_run(tmp_path / "b", offset=0.3)
  names = {"loss.png", "learning_rate.png", "norms.png"}
  report.main([str(a)])
  assert names < {path.name for path in a.iterdir()}
  report.main([str(a), str(b)])
  assert names == {path.name for path in pathlib.Path("report").iterdir()}
  picture = image.imread("report/loss.png")
  assert picture.shape[1] == 1500
  assert picture[..., :3].std() > 0.05  # Something is drawn.


def test_steps_to_loss_interpolates_between_evaluations(tmp_path):
  # Evaluated loss is 8.5 - step / 25: 6.1 at step 60, a multiple of 20 or not.
  run = read.load_run(_make_run(tmp_path / "a"))
  for loss, step in ((6.1, 60), (5.9, 65), (7.9, 20)):
    reached = read.steps_to_loss(run, "sotu", loss)
    np.testing.assert_allclose(reached, (step, 1000 * step, 2 * step))
  # Already below it at the first evaluation: no later than that.
  assert read.steps_to_loss(run, "sotu", 8.2).steps == 20
  assert read.steps_to_loss(run, "sotu", 4.4) is None


def test_reaching_a_loss_from_the_command_line(tmp_path, capsys):
  runs = [str(_make_run(tmp_path / n, offset=o)) for n, o in
          (("fast", 0.0), ("slow", 0.4), ("never", 5.0))]  # fmt: skip
  assert report.main([*runs, "--to=6.1", "--set=sotu"]) == 0
  rows = [line.split() for line in capsys.readouterr().out.splitlines()[4:]]
  assert rows == [
    ["fast", "60", "60.0k", "2:00"],
    ["slow", "70", "70.0k", "2:20"],
    ["never", "not", "reached", "-", "-"],
  ]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["nowhere"], "nowhere is not a folder.*--workdir"),
    (["."], "has no metrics.jsonl.*--workdir"),
    (["empty"], "has no lines yet.*log.every"),
    (["good", "--to=3", "--set=c4"], r"no eval/c4/loss.*\['sotu'\].*--set"),
  ],
)
def test_errors_say_what_to_do(tmp_path, monkeypatch, capsys, args, message):
  monkeypatch.chdir(tmp_path)
  _make_run(tmp_path / "good")
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "metrics.jsonl").touch()
  assert report.main(args) == 2
  assert re.search(message, capsys.readouterr().err)


def test_equal_folder_names_are_told_apart(tmp_path):
  folders = [_make_run(tmp_path / p / "run") for p in ("a", "b")]
  assert [r.name for r in read.load_runs(folders)] == ["a/run", "b/run"]


def test_smoothing_is_a_mean_that_skips_what_is_not_finite():
  values = np.array([1.0, 2.0, math.nan, 4.0, math.inf, 6.0])
  expected = [1.5, 1.5, 3.0, 4.0, 5.0, 6.0]
  np.testing.assert_allclose(plots.smooth(values, 3), expected)
  nothing = plots.smooth(np.full(4, math.nan), 3)
  assert np.isnan(nothing).all()


def test_the_loss_figure_holds_curves_evaluations_and_labelled_floors(tmp_path):
  sets = ("sotu", "stdlib")
  run = read.load_run(_make_run(tmp_path / "a", sets=sets))
  figure = plots.loss_figure([run])
  grid = np.reshape(figure.axes, (2, 3))
  assert [axes.get_ylabel() for axes in grid[:, 0]] == [
    "sotu loss (nats/token)", "stdlib loss (nats/token)",
  ]  # fmt: skip
  last = grid[1, 2]
  assert [text.get_text() for text in last.texts] == [
    "trigram 5.25", "unigram 6.50",
  ]  # fmt: skip
  assert last.get_xlabel() == "time (minutes)"
  markers = next(x for x in last.lines if x.get_marker() == "o")
  minutes = np.arange(20, 101, 20) * 2.0 / 60
  np.testing.assert_allclose(markers.get_xdata(), minutes)


def test_a_run_without_seconds_is_drawn_against_steps_and_tokens(
  tmp_path, capsys
):
  mine, stored = _make_run(tmp_path / "mine"), _make_run(tmp_path / "stored")
  path = stored / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    del line["seconds"]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  out = f"--out={tmp_path}"
  assert report.main([str(mine), str(stored), out]) == 0
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert [row[:1] + row[5:6] for row in rows[2:4]] == [
    ["mine", "3:20"], ["stored", "-"],
  ]  # fmt: skip
  assert report.main([str(stored), "--to=6.1"]) == 0
  row = capsys.readouterr().out.splitlines()[-1].split()
  assert row == ["stored", "60", "60.0k", "-"]
  figure = plots.loss_figure(read.load_runs([mine, stored]))
  drawn = [
    sum(np.isfinite(line.get_xdata()).any() for line in axes.lines)
    - len(axes.texts)
    for axes in figure.axes
  ]
  # Light, smooth and marked curves of both, of one; two floors in each panel.
  assert drawn == [6 + 2, 6 + 2, 3 + 2 - 2]
  assert figure.axes[2].get_xlabel() == "time (minutes)"
  assert report.main([str(stored), out]) == 0


def test_figures_survive_a_diverged_run(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
  line = {"tokens": 1, "seconds": 1.0, "train/loss": math.nan}
  writer.write(1, line | {"eval/sotu/loss": math.inf, "train/grad_norm": 0.0})
  writer.close()
  plots.draw([read.load_run(tmp_path)], tmp_path / "out", log_x=True)
