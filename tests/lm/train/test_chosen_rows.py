"""Runs on some rows: full batches, and a choice that changes under a run."""

import numpy as np

from lm.config import errors
from lm.runs import metrics


def test_full_batches_have_one_loss_while_nothing_is_learned(tiny, tmp_path):
  """With a rate of 0, batches of all rows differ in their order alone."""
  run = {"optim__learning_rate": 0.0, "data__batch_size": 8}
  for name, limit in (("full", 8), ("sampled", 0)):
    code, output = tiny.run(tmp_path / name, **run, data__limit_rows=limit)
    assert code == 0, output
  full, sampled = (
    metrics.read(tmp_path / name)["train/loss"].values
    for name in ("full", "sampled")
  )
  np.testing.assert_allclose(full, full[0], rtol=1e-6)
  assert np.ptp(sampled) > 1e-3


def test_a_choice_that_changed_is_not_resumed(tiny, tmp_path):
  run, file = tmp_path / "run", tmp_path / "s.npz"
  more = {"schedule__name": "constant", "schedule__warmup": 0.0}

  def go(steps, path, *numbers):
    if numbers:
      np.savez(path, **{tiny.corpus: np.array(numbers)})
    return tiny.run(run, **more, train__num_steps=steps, data__select=str(path))

  code, output = go(2, file, 3, 5, 8)
  assert code == 0, output
  code, output = go(4, file, 3, 5, 9)
  assert code == errors.BAD_INPUT
  assert f"config.data.select='{file}'" in output
  assert "is not what the checkpoint was trained on" in output
  code, output = go(4, "")
  assert code == errors.BAD_INPUT
  code, output = go(4, tmp_path / "moved.npz", 8, 5, 3)
  assert code == 0, output
  code, output = tiny.run(run, **more, train__num_steps=4, data__limit_rows=9)
  assert code == errors.BAD_INPUT
  assert "config.data.limit_rows: 0 there, 9 now" in output
