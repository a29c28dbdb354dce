"""Simulated scale: four methods at three sizes on 8 to 4,096 TPU v5p chips.

    python benchmarks/scale.py [--counts=FILE] [--methods=adamw,soap]
        [--sizes=150M] [--devices=8,64,512,2048]
    python benchmarks/scale.py [--counts=FILE] --draw [--figures=docs/figures]

The first compiles every update for fake CPU devices and adds a line of counts
to the file, unless it is there; the second prints the table and draws the
curves. Each device has 8,192 tokens a pass. The mesh is fsdp up to 64
devices, and replicas of that beyond. Of AdamW and LOTION all numbers of devices
follow from their law.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
COUNTS = _ROOT / "docs" / "figures" / "scaling_counts.jsonl"
METHODS = ("adamw", "lotion", "soap", "gauss_newton")
SIZES = {"150M": "olmo150m", "1B": "cbs1b2", "8B": "olmo8b"}
TOKENS = 8192  # A device and pass.
MOST_FSDP = 64
INNER, SEARCH = 16, 4


def config_of(method, size, devices):
  """The resolved configuration of one point: method, size, devices."""
  from lm.config import load
  from lm.tools import estimate

  name = f"ml_collections_configs.{SIZES[size]}"
  path = _ROOT / (name.replace(".", "/", 1) + ".py")
  loader = importlib.machinery.SourceFileLoader("point", str(path))
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("point", loader)
  )
  loader.exec_module(module)
  c = module.get_config()
  rows = TOKENS // c.data.seq_length * devices
  c.data.batch_size, c.eval.batch_size = rows, devices
  c.model.remat = "full"
  c.mesh.fsdp = min(devices, MOST_FSDP)
  c.mesh.data = devices // c.mesh.fsdp
  if method == "soap":
    c.optim.name, c.optim.kwargs = "soap", {}
  if method == "lotion":
    c.quant.method, c.quant.strength = "lotion", 100.0
  if method == "gauss_newton":
    c.optim.name, c.optim.kwargs = "gauss_newton", {}
    c.optim.averages = ()
    c.schedule.name, c.schedule.warmup = "constant", 0.0
    c.gauss_newton.inner_steps = INNER
    c.train.microbatch_size = rows
    c.data.batch_size = rows * (INNER + SEARCH)
  return estimate.resolve(load.from_config_dict(c), "tpu")


def _measure(arguments):
  import jax

  from lm.tools import cost

  path = arguments.counts
  lines = path.read_text().splitlines() if path.exists() else []
  done = {
    (p["method"], p["size"], p["devices"]) for p in map(json.loads, lines)
  }
  for devices in arguments.devices:
    for size in arguments.sizes:
      for method in arguments.methods:
        if (method, size, devices) in done:
          continue
        start = time.time()
        config = config_of(method, size, devices)
        counts = cost.measure(config, jax.devices()[:devices])
        sent = [[*key, n] for key, n in sorted(counts.sent.items())]
        point = {"method": method, "size": size, "devices": devices}
        point |= counts._asdict() | {"sent": sent}
        with path.open("a") as file:
          file.write(json.dumps(point) + "\n")
        print(method, size, devices, f"{time.time() - start:.0f} s", flush=True)


def main():
  """Measures, or draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  split = lambda text: text.split(",")  # noqa: E731
  parser.add_argument("--counts", type=pathlib.Path, default=COUNTS)
  parser.add_argument("--methods", type=split, default=list(METHODS))
  parser.add_argument("--sizes", type=split, default=list(SIZES))
  parser.add_argument(
    "--devices",
    type=lambda text: [int(n) for n in text.split(",")],
    default=[8, 64, 512, 2048],
  )
  parser.add_argument("--draw", action="store_true")
  parser.add_argument("--figures", type=pathlib.Path, default=None)
  arguments = parser.parse_args()
  arguments.counts.parent.mkdir(parents=True, exist_ok=True)
  if arguments.draw:
    import scale_figures

    scale_figures.show(arguments.counts, arguments.figures)
    return
  most = max(arguments.devices)
  flags = f"--xla_force_host_platform_device_count={most}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
  os.environ["JAX_PLATFORMS"] = "cpu"
  _measure(arguments)


if __name__ == "__main__":
  main()
