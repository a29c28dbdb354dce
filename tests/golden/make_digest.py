"""Makes `digest.npz`: the bits of 50 updates of every exported transform.

    python tests/golden/make_digest.py          # writes the file
    python tests/golden/make_digest.py --check  # compares with the file

A case is a row of `oracles/contract.py`, a type of params, and 1 or 8 CPU
devices. The check before and after a change of the code, on one machine, shows
whether the change kept every bit. A change that means to change bits writes
the file anew and says which transforms and why.

Gradients are normal trees, seeded by the step, plus 0.1 * params: so an error
in one update is seen in all later ones.
"""

import argparse
import hashlib
import inspect
import json
import os
import pathlib
import platform
import re
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":
  sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Partitioner's advice.
  import conftest  # noqa: F401  Asks for eight devices.

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxlib  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import scipy  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from oracles.contract import SHAPES, TRANSFORMS, make_params  # noqa: E402

import optim  # noqa: E402

FILE = pathlib.Path(__file__).with_name("digest.npz")
STEPS = 50
KEPT = (1, 2, 11, 12, 50)  # Whose updates are kept as numbers, not bits alone.
STEP_SIZE = 1e-2  # Along the transforms that are directions uphill.
DTYPES = ("float32", "bfloat16")
AXES, SIZES = ("data", "fsdp"), (2, 4)
SHARDS = 8


def fingerprint() -> str:
  """JSON of what decides the bits besides the code: the machine, versions."""
  model, flags = platform.processor(), ""
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    text = info.read_text()
    model = _first(r"model name\s*: (.*)", text) or model
    flags = _first(r"(?:flags|Features)\s*: (.*)", text)
  return json.dumps(
    dict(
      cpu=model,
      cpu_flags=hashlib.sha256(flags.encode()).hexdigest()[:16],
      cores=os.cpu_count(),
      python=platform.python_version(),
      jax=jax.__version__,
      jaxlib=jaxlib.__version__,
      numpy=np.__version__,
      scipy=scipy.__version__,  # Its LAPACK is what jaxlib calls.
      optax=optax.__version__,
      xla_flags=sorted(set(os.environ.get("XLA_FLAGS", "").split())),
    ),
    sort_keys=True,
  )


def _first(pattern: str, text: str) -> str:
  found = re.search(pattern, text)
  return found.group(1).strip() if found else ""


def cases() -> list[tuple[str, str, int]]:
  """(row, type, devices) of every case."""
  return [
    (row, dtype, devices)
    for row in sorted(TRANSFORMS)
    for dtype in DTYPES
    for devices in (1, SHARDS)
  ]


def case_name(row: str, dtype: str, devices: int) -> str:
  """The case's key in the file."""
  return f"{row}/{dtype}/{devices}"


def _spec(shape: tuple[int, ...]) -> P:
  """The mesh's axes, the longest first, from the last axis that each divides.

  So stacks are cut along their matrices' sides, as a language model's are.
  """
  axes = sorted(zip(SIZES, AXES, strict=True))
  entries = []
  for size in reversed(shape):
    fits = bool(axes) and size > 0 and size % axes[-1][0] == 0
    entries.append(axes.pop()[1] if fits else None)
  return P(*reversed(entries))


SPECS = {name: _spec(shape) for name, shape in SHAPES.items()}


def _spread(make):
  """What a factory is told of the mesh, and `state_specs` of it.

  The one place that names these arguments. A factory that does not take them
  (its inner transform may) keeps its stacks wherever the compiler puts them.
  """
  placement, options = optim.Placement(param_specs=SPECS), {}
  if "placement" in inspect.signature(make).parameters:
    placement = optim.Placement(AXES, SHARDS, SPECS)
    options = dict(placement=placement)
  return options, lambda state: optim.state_specs(state, placement)


def _compiled(row, dtype, devices):
  """(init, update), jitted, and where params and gradients lie."""
  if devices == 1:
    tx = row.build()
    return jax.jit(tx.init), jax.jit(tx.update), None
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  mesh = jax.make_mesh(SIZES, AXES, axis_types=auto)
  options, state_specs = _spread(row.make)
  tx = row.build(**options)
  params = jax.eval_shape(lambda: make_params(dtype))
  specs = SPECS, state_specs(jax.eval_shape(tx.init, params))
  place = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, P),
  )
  init = jax.jit(tx.init, out_shardings=place[1])
  return init, jax.jit(tx.update, out_shardings=place), place[0]


@jax.jit
def _gradients(noise, params):
  return jax.tree.map(lambda z, p: z + 0.1 * p, noise, params)


@jax.jit
def _move(params, updates, rate):
  return jax.tree.map(
    lambda p, u: p + rate.astype(p.dtype) * u.astype(p.dtype), params, updates
  )


def trajectory(row_name: str, dtype: str, devices: int) -> list[dict]:
  """[the tree of updates, NumPy arrays] of each of the 50 steps."""
  row = TRANSFORMS[row_name]
  init, update, place = _compiled(row, jnp.dtype(dtype), devices)
  mesh = None if place is None else next(iter(place.values())).mesh
  rate = jnp.float32(1.0 if row.descends else -STEP_SIZE)

  def put(tree):
    return tree if place is None else jax.device_put(tree, place)

  def run():
    params = put(make_params(jnp.dtype(dtype)))
    state, extra = init(params), row.extra_args(params)
    for step in range(1, STEPS + 1):
      noise = put(make_params(jnp.dtype(dtype), seed=step))
      updates, state = update(_gradients(noise, params), state, params, **extra)
      params = put(_move(params, updates, rate))
      yield {name: np.asarray(x) for name, x in updates.items()}

  if mesh is None:
    return list(run())
  with jax.set_mesh(mesh):
    return list(run())


def summarize(updates: list[dict]) -> tuple[str, np.ndarray]:
  """(sha256 of all updates' bytes, [5, entries] float32 of the kept steps)."""
  sha = hashlib.sha256()
  for tree in updates:
    for name in sorted(tree):
      sha.update(np.ascontiguousarray(tree[name]).tobytes())
  values = [flat(updates[step - 1]) for step in KEPT]
  return sha.hexdigest(), np.stack(values)


def flat(tree: dict) -> np.ndarray:
  """All entries of a tree, [entries] in float32, leaves sorted by name."""
  leaves = [np.float32(tree[name]).reshape(-1) for name in sorted(tree)]
  return np.concatenate(leaves)


def load(path: pathlib.Path = FILE) -> tuple[str, dict]:
  """(fingerprint, {case name: (sha256, values)}) of a file."""
  with np.load(path) as data:
    rows = [data[name].tolist() for name in ("cases", "sha256")]
    entries = zip(*rows, data["values"], strict=True)
    return str(data["fingerprint"]), {
      name: (sha, values) for name, sha, values in entries
    }


def write(path: pathlib.Path = FILE):
  """Runs every case and writes the file."""
  done = {case_name(*case): summarize(trajectory(*case)) for case in cases()}
  np.savez_compressed(
    path,
    fingerprint=fingerprint(),
    cases=list(done),
    sha256=[sha for sha, _ in done.values()],
    values=np.stack([values for _, values in done.values()]),
  )


def check(path: pathlib.Path = FILE) -> int:
  """Prints the cases that differ from the file; returns how many."""
  machine, recorded = load(path)
  if machine != fingerprint():
    print(f"Made on another machine: {machine}\nThis one: {fingerprint()}")
  differ = 0
  for case in cases():
    name = case_name(*case)
    sha, values = summarize(trajectory(*case))
    if name not in recorded:
      print(f"{name}: not in the file")
    elif sha != recorded[name][0]:
      apart = np.abs(values - recorded[name][1]).max(axis=1)
      steps = ", ".join(
        f"step {k}: {x:.1e}" for k, x in zip(KEPT, apart, strict=True)
      )
      print(f"{name}: differs; largest difference at {steps}")
    else:
      continue
    differ += 1
  gone = set(recorded) - {case_name(*case) for case in cases()}
  for name in sorted(gone):
    print(f"{name}: in the file, but no case")
  differ += len(gone)
  verdict = f"{differ} differ" if differ else "all equal"
  print(f"{len(cases())} cases, {verdict}")
  return differ


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true", help="compare only")
  if parser.parse_args().check:
    sys.exit(1 if check() else 0)
  write()
