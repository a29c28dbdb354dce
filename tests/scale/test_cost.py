"""The law of communication against compiled programs: equal to the byte."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks.scale import cost, measure, points
from lm.config import load
from lm.step import flops
from ml_collections_configs import base

_ROOT = pathlib.Path(__file__).parents[2]
_SCALARS = 4096  # Bytes that the law leaves out, at most.
_SHAPE = {
  "model.D": 64, "model.N": 2, "model.H": 4, "model.G": 4, "model.F": 192,
  "model.V": 384, "model.tied": False, "model.qk_norm": "full",
  "model.layers": "scan", "data.seq_length": 32, "data.tokenizer": "bytes",
}  # fmt: skip
_GAUSS_NEWTON = {
  "optim.name": "gauss_newton",
  "optim.kwargs": {"decay": 0.95},
  "gauss_newton.inner_steps": 4,
  "schedule.name": "constant",
  "schedule.warmup": 0.0,
}
_METHODS = {
  "adamw": {},
  "lotion": {"quant.method": "lotion", "quant.strength": 1.0},
  "soap": {"optim.name": "soap", "optim.kwargs": {}},
  "gauss_newton": _GAUSS_NEWTON,
}


def _config(data, fsdp, method="adamw", rows=2, **more):
  """Of a model with two rows a device and pass."""
  c, n = base.get_config(), data * fsdp
  passes = 5 if method == "gauss_newton" else 1
  changes = _SHAPE | _METHODS[method] | more
  changes |= {
    "mesh.data": data,
    "mesh.fsdp": fsdp,
    "data.batch_size": rows * n * passes,
    "train.microbatch_size": rows * n,
    "eval.batch_size": n,
  }
  c.optim.kwargs = changes.pop("optim.kwargs", c.optim.kwargs)
  with c.unlocked():
    c.update_from_flattened_dict(changes)
  return load.resolve(
    load.from_config_dict(c),
    vocab_size=258, eos_id=1, pad_id=0, platform="cpu",
  )  # fmt: skip


def _measure(data, fsdp, method="adamw", **more):
  """Counts, on fake devices: the test's own, or more in a child process."""
  if data * fsdp <= len(jax.devices()):
    config = _config(data, fsdp, method, **more)
    return measure.measure(config, jax.devices()[: data * fsdp])
  script = (
    "import json, sys; sys.path[:0] = ['.', 'tests/scale'];"
    "import test_cost as t;"
    f"c = t._measure({data}, {fsdp}, {method!r}, **{more!r});"
    "sent = [[*k, n] for k, n in c.sent.items()];"
    "print(json.dumps(c._asdict() | {'sent': sent}))"
  )
  count = f"--xla_force_host_platform_device_count={data * fsdp}"
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True,
    env=os.environ | {"XLA_FLAGS": count},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  found["sent"] = {(kind, axes): n for kind, axes, n in found["sent"]}
  return points.Counts(**found)


def _check(data, fsdp, method="adamw", **more):
  counts = _measure(data, fsdp, method, **more)
  wanted = cost.law(_config(data, fsdp, method, **more), counts.mesh)
  rest = {
    key: counts.sent.get(key, 0) - wanted.get(key, 0)
    for key in {*counts.sent, *wanted}
  }
  assert all(0 <= n < _SCALARS for n in rest.values()), rest
  return {key: n for key, n in rest.items() if n}


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 4), (2, 4)])
def test_the_law_is_what_is_compiled(data, fsdp):
  rest = _check(data, fsdp)
  # No array hides in what the law leaves out: the weight of the batch, losses,
  # norms and their like.
  assert sum(rest.values()) <= 160


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adamw", "lotion"])
@pytest.mark.parametrize("axis", ["data", "fsdp", "both"])
def test_the_law_holds_for_every_number_of_devices(axis, method):
  sizes = [2, 4, 8, 16]
  meshes = {
    "data": [(n, 1) for n in sizes],
    "fsdp": [(1, n) for n in sizes],
    "both": [(n // 2, 2) for n in sizes[1:]],
  }[axis]
  rests = [_check(data, fsdp, method) for data, fsdp in meshes]
  assert all(rest == rests[0] for rest in rests), rests


@pytest.mark.slow
@pytest.mark.parametrize(
  "more",
  [
    {"model.N": 3, "model.D": 128},
    {"model.remat": "full"},
    {"model.mlp": "swiglu", "model.G": 2},
    {"data.seq_length": 64, "model.V": 640},
  ],
)
def test_the_law_holds_for_other_models(more):
  _check(2, 2, **more)


@pytest.mark.slow
def test_replicas_of_gauss_newton_reduce_shards_of_gradients():
  """Once an inner step, as AdamW does once an update."""
  steps = _METHODS["gauss_newton"]["gauss_newton.inner_steps"]
  mesh = {"data": 2, "fsdp": 2, "tensor": 1}
  wanted = cost.law(_config(2, 2), mesh)["all-reduce", "data"]
  sent = _measure(2, 2, "gauss_newton").sent
  assert 0 <= sent["all-reduce", "data"] - steps * wanted < _SCALARS
  gains = cost.law(_config(2, 2), mesh)["all-reduce", "data+fsdp"]
  assert 0 <= sent["all-reduce", "data+fsdp"] - steps * gains < _SCALARS


def test_products_are_those_of_the_formula():
  counts = _measure(8, 1)
  config = _config(8, 1)
  formula = flops.train_flops_per_token(config.model, causal_half=False)
  assert counts.flops == formula * counts.tokens / 8


def test_the_law_refuses_what_it_does_not_describe():
  mesh = {"data": 2, "fsdp": 2, "tensor": 1}
  with pytest.raises(ValueError, match="measure anything else"):
    cost.law(_config(2, 2, "soap"), mesh)
  with pytest.raises(ValueError, match="does not divide over fsdp=128"):
    cost.law(_config(1, 2), mesh | {"fsdp": 128})


def test_rings_by_hand():
  assert cost.ring_seconds("all-gather", 4, 400, 100) == 3
  assert cost.ring_seconds("all-reduce", 4, 400, 100) == 6
  assert cost.ring_seconds("collective-permute", 4, 400, 100) == 4


def test_what_leaves_a_slice_goes_over_its_border():
  chip = cost.Chip(100, 10, 50, 1, 0.5)
  mesh = {"data": 4, "fsdp": 2, "tensor": 1}
  sent = {("all-gather", "fsdp"): 200, ("all-reduce", "data"): 100}
  counts = points.Counts(mesh, 1000, 30, sent, 8)
  whole = cost.seconds(counts, chip)
  assert whole == cost.Seconds(20, 3, 2 + 3, 0)
  assert (whole.local, whole.total) == (20, 25)
  assert cost.seconds(counts, chip, slice_devices=4) == cost.Seconds(
    20, 3, 2, 150
  )
  assert cost.seconds(counts, chip, slice_devices=8) == whole
