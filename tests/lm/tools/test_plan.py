"""Plans against sizes counted by hand, and against the compiler."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import pytest
import versions

from lm.config import load
from lm.config.errors import ConfigError
from lm.step import build, chips, memory
from lm.tools import estimate, plan
from ml_collections_configs import base, olmo150m

_ROOT = pathlib.Path(__file__).parents[3]


def _config(make=base.get_config, platform="tpu", **changes):
  config = make()
  for key, value in changes.items():
    with config.unlocked():
      config.update_from_flattened_dict({key.replace("__", "."): value})
  return estimate.resolve(load.from_config_dict(config), platform)


def _small(**changes):
  sizes = {"model__D": 64, "model__N": 2, "model__F": 128, "model__V": 256}
  short = {"data__seq_length": 32, "data__batch_size": 16}
  return _config(**(sizes | short | changes))


def _rows(config, devices):
  return {row.name: row for row in plan.by_formula(config, devices).rows}


@pytest.mark.parametrize(
  ("name", "devices", "memory_gb"),
  [
    ("v4-8", 4, 34.4),
    ("v5p-32", 16, 102.0),
    ("v5e-16", 16, 17.2),
    ("v5litepod-16", 16, 17.2),
    ("V6e-8", 8, 34.4),
    ("a100-40gb-8", 8, 40),
    ("h100-8", 8, 80),
    ("v5p-8192", 4096, 102.0),
  ],
)
def test_names_of_topologies(name, devices, memory_gb):
  found = chips.find(name)
  assert found.devices == devices
  assert found.kind.memory / 1e9 == pytest.approx(memory_gb, rel=2e-3)


@pytest.mark.parametrize(
  ("name", "message"),
  [("v9-8", "none of v3-N"), ("v5e", "none of"), ("v4-7", "e.g. v4-8")],
)
def test_names_that_are_none(name, message):
  with pytest.raises(ValueError, match=message):
    chips.find(name)


def test_shapes_of_slices_multiply_to_their_chips():
  for kind in chips.KINDS.values():
    for number, shape in kind.shapes.items():
      sides = [int(n) for n in shape.split("x")]
      assert number == math.prod(sides)
  assert chips.find("v5p-32").compiler_name == "v5p:2x2x4"
  assert chips.find("v5e-16").compiler_name == "v5e:4x4"
  assert chips.find("h100-8").compiler_name is None


def test_slices_keep_parameters_to_themselves():
  topology = chips.find("2xv5p-32")
  assert (topology.devices, topology.slices) == (32, 2)
  assert topology.compiler_name == "v5p:2x2x4"
  config = _small(mesh__data=1, mesh__fsdp=32, data__batch_size=32)
  with pytest.raises(ValueError, match="data=1 must be a multiple of the 2"):
    plan.make(config, topology, "formula")
  with pytest.raises(ValueError, match="e.g. h100-16"):
    chips.find("2xh100-8")
  with pytest.raises(ValueError, match="none of"):
    chips.find("0xv5p-32")


def test_ways_out_of_two_slices_split_within_one():
  config = _config(olmo150m.get_config)
  lines = list(plan.ways_out(config, chips.find("2xv5e-16")))
  assert lines
  assert not any("fsdp=32" in line for line in lines)


def test_what_adamw_keeps_by_hand():
  config = _config(olmo150m.get_config, mesh__data=2, mesh__fsdp=8)
  rows = _rows(config, 16)
  # Padded to 128s, 12 blocks of 12 D^2 and their gains, which are not split.
  d, gains = 1024, 12 * 4 * 1024 + 1024
  split = 2 * 32_128 * d + 12 * 12 * d * d
  for name in ("parameters", "optimiser: mu", "optimiser: nu", "gradients"):
    assert rows[name].bytes == 4 * (split // 8 + gains)
  assert rows["parameters"].whole == 4 * (split + gains)
  ahead = 1 + config.data.prefetch
  assert rows["batches, with those made ahead"].bytes == (
    ahead * 256 // 16 * 1025 * 4
  )


def test_every_field_of_a_state_is_told():
  config = _small(optim__name="soap", optim__kwargs={}, mesh__fsdp=2)
  rows = _rows(config, 4)
  fields = [name for name in rows if name.startswith("optimiser")]
  assert fields == [
    "optimiser: inner.mu",
    "optimiser: inner.nu",
    "optimiser: kronecker.factors",
    "optimiser: kronecker.derived",
    "optimiser: counts",
  ]
  assert rows["updates of matrices"].phase == memory.UPDATE


def test_the_peak_is_the_worst_phase():
  row = memory.Row
  rows = [
    row("a", 1, 1, memory.KEPT),
    row("b", 10, None, memory.GRADIENTS),
    row("c", 100, None, memory.BACKWARD),
    row("d", 300, None, memory.UPDATE),
  ]
  assert memory.peak(rows) == 311
  assert memory.peak(rows[:3]) == 111


def test_activations_by_hand():
  """Of an MLP-free count: what full rematerialisation keeps of a block."""
  config = _small(model__remat="full", model__compute_dtype="bfloat16")
  cfg = config.model
  more = dataclasses.replace(cfg, N=cfg.N + 1)
  block = memory.saved_bytes_per_row(more) - memory.saved_bytes_per_row(cfg)
  assert block == 2 * cfg.L * cfg.D  # The stream alone.
  kept = memory.saved_bytes_per_row(dataclasses.replace(cfg, remat="none"))
  dots = memory.saved_bytes_per_row(dataclasses.replace(cfg, remat="dots"))
  assert memory.saved_bytes_per_row(cfg) < dots < kept


def test_tensor_parallel_devices_share_the_wide_activations():
  cfg = _small(model__F=4096).model
  whole = memory.saved_bytes_per_row(cfg)
  assert whole / 4 < memory.saved_bytes_per_row(cfg, 4) < whole / 2


def test_a_fused_kernel_keeps_no_scores():
  cfg = _small(model__H=4, data__seq_length=512).model
  scores = 4 * cfg.H * cfg.L**2
  fused = dataclasses.replace(cfg, attention="splash")
  less = memory.saved_bytes_per_row(cfg) - memory.saved_bytes_per_row(fused)
  assert less >= cfg.N * scores


def test_kept_bytes_are_the_arguments_of_the_compiled_program():
  """And the estimate of the peak is neither far off nor too low."""
  config = _small(platform="cpu", mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  devices = jax.devices()[:8]
  parts = build.build(config, devices)
  with jax.set_mesh(parts.mesh):
    used = build.compile_step(parts).memory_analysis()
  kept = memory.peak(memory.kept(parts))
  ahead = config.data.prefetch * 16 // 4 * 33 * 4
  flags_and_count = used.argument_size_in_bytes - (kept - ahead)
  assert 0 <= flags_and_count <= 16
  estimated = plan.by_formula(config, 8).peak - kept
  assert 0.7 < estimated / used.temp_size_in_bytes < 3


def test_a_plan_that_does_not_hold_says_what_would():
  config = _config(olmo150m.get_config)
  topology = chips.find("v5e-4")
  with pytest.raises(ConfigError) as caught:
    plan.check(plan.by_formula(config, 4), config, topology)
  message = str(caught.value)
  held = versions.OLMO150M_ON_4_CHIPS
  assert f"v5e-4 would not hold it: {held} on a device of 17.2 GB" in message
  rows = int(re.search(r"--config\.train\.microbatch_size=(\d+)", message)[1])
  train = dataclasses.replace(config.train, microbatch_size=rows)
  helped = plan.by_formula(dataclasses.replace(config, train=train), 4)
  assert helped.peak <= topology.kind.memory
  train = dataclasses.replace(config.train, microbatch_size=2 * rows)
  worse = plan.by_formula(dataclasses.replace(config, train=train), 4)
  assert worse.peak > topology.kind.memory


def test_a_model_too_large_for_anything_says_so():
  config = _config(olmo150m.get_config, model__D=16_384, model__F=65_536)
  topology = chips.find("v5e-1")
  made = plan.by_formula(config, 1)
  with pytest.raises(ConfigError, match="take more or larger devices"):
    plan.check(made, config, topology)


def test_thousands_of_devices_need_not_exist():
  config = _config(
    olmo150m.get_config,
    mesh__data=64,
    mesh__fsdp=64,
    data__batch_size=4096,
    eval__batch_size=4096,
  )
  made = plan.by_formula(config, 4096)
  assert made.rows[0].bytes < 4 * 217e6 / 60


def test_a_compiler_that_refuses_says_what_would_hold(monkeypatch):
  def out_of_memory(parts):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 37G of 16G\nmore")

  monkeypatch.setattr(chips, "described_devices", lambda _: jax.devices())
  monkeypatch.setattr(build, "compile_step", out_of_memory)
  config = _small(train__microbatch_size=0)
  with pytest.raises(ConfigError) as error:
    plan.make(config, chips.find("v5e-8"))
  message = str(error.value)
  assert "v5e-8 would not hold it: RESOURCE_EXHAUSTED: 37G of 16G" in message
  assert "\nmore" not in message
  assert "--config.mesh.data=1 --config.mesh.fsdp=8" in message


def test_a_device_that_states_its_memory_refuses_the_state(monkeypatch):
  config = _small(platform="cpu")
  parts: Any = build.build(config, jax.devices()[:1])
  memory.check(parts)

  class Device:
    def memory_stats(self):
      return {"bytes_limit": memory.peak(memory.kept(parts)) - 1}

  class Mesh:
    local_devices = (Device(),)

  with pytest.raises(ConfigError, match=r"config\.mesh\.fsdp=-1"):
    memory.check(parts._replace(mesh=Mesh()))


def _run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "lm.tools.plan", *flags],
    cwd=_ROOT, capture_output=True, text=True,
  )  # fmt: skip


@pytest.mark.slow
def test_the_table_of_the_page_is_what_its_command_prints():
  page = (_ROOT / "docs" / "pods.md").read_text()
  shown = r"```sh\n(python -m lm\.tools\.plan [^`]*)```\n+```text\n([^`]*)```"
  ((command, output),) = re.findall(shown, page)
  words = command.replace("\\\n", " ").split()
  done = _run(*words[3:])
  for shown, planned in versions.OLMO150M_ON_THE_PAGE.items():
    output = output.replace(shown, planned)
  assert (done.stdout, done.stderr) == (output, "")


def test_exit_codes_and_the_stand_in_for_a_compiler():
  tiny = "--config=ml_collections_configs/tiny.py"
  small = [f"--config.model.{k}" for k in ("D=64", "F=128", "N=1")]
  done = _run(tiny, *small, "--topology=cpu-2", "--by=compiler")
  assert done.returncode == 0, done.stderr
  assert "The peak is the compiler's for 2 cpu." in done.stdout
  done = _run(tiny, "--topology=v5e-1", "--by=formula",
    "--config.model.D=8192", "--config.model.F=32768")  # fmt: skip
  assert done.returncode == 2
  assert "v5e-1 would not hold it" in done.stderr


@pytest.mark.slow
def test_a_run_begins_with_what_it_keeps(tiny, tmp_path):
  code, output = tiny.run(
    tmp_path, train__num_steps=1, log__progress="plain", mesh__data=1
  )
  assert code == 0
  found = re.search(r"^parameters +(\S+ \S+) +1 +kept$", output, re.MULTILINE)
  parts = build.build(
    estimate.resolve(tiny.config(mesh__data=1), "cpu"), jax.devices()[:1]
  )
  assert found, output
  assert found[1] == memory.size_text(memory.kept(parts)[0].bytes)
