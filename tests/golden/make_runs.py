"""Makes `runs/`: small runs and exports, and what became of them.

    python tests/golden/make_runs.py          # writes everything anew
    python tests/golden/make_runs.py --check  # compares all losses, bit by bit

For each configuration the model is shrunk and trained on `runs/text` (generated
by `text` below, then kept: the same on every machine) for 50 updates on one CPU
device, and on eight. What is kept:

    runs/NAME/             config.json, run.json, metrics.jsonl and the
                           checkpoint, as a kill after update 20 leaves them
    runs/NAME.npz          the export of that checkpoint
    runs/NAME.rounded.npz  the same with --quantize, where a grid is chosen
    runs/results.json      losses of all 50 updates, unbroken and resumed, and
                           what `lm.evaluate` says

They stand for the runs that people have. Do not write them anew because a
change of the code cannot read them: such a change translates. A change that
means to change the numbers writes `results.json` alone (--results).

Paths in them are relative to a folder that holds `text` and `data`; enter it.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":
  sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

FOLDER = pathlib.Path(__file__).with_name("runs")
CORPUS = "dir:text"
STOP, STEPS = 20, 50
# What is resumed from, and what only has losses. Each: the file of the
# configuration, and what is changed beside the size.
STORED = {
  "tiny": ("tiny", {"optim.averages": ("ema:0.9",)}),
  "soap": ("soap", {}),
  "gn_tiny": (
    "gn_tiny",
    {
      "data.batch_size": 40,
      "train.microbatch_size": 8,
      "gauss_newton.inner_steps": 4,
      "gauss_newton.search_batches": 1,
    },
  ),
  "lotion_int4": ("lotion_int4", {}),
}
# Whose numbers a change meant to change since the runs were stored: they resume
# from a past that an unbroken run of today does not have.
CHANGED = ("soap",)
MUON = dict(beta=0.95, weight_decay=0.1, consistent_rms=0.2)
RUNS = STORED | {"muon": ("tiny", {"optim.name": "muon", "optim.kwargs": MUON})}
_SMALL = {
  "model.D": 16,
  "model.N": 2,
  "model.H": 2,
  "model.G": 2,
  "model.F": 32,
  "data.root": "data",
  "data.mixture": ((CORPUS, 1.0),),
  "data.tokenizer": "bytes",
  "data.seq_length": 32,
  "data.batch_size": 8,
  "eval.sets": (CORPUS,),
  "eval.every": 0,
  "eval.batch_size": 8,
  "eval.final_batches": 2,
  "train.num_tokens": 0,
  "train.num_steps": STEPS,
  "checkpoint.every": STOP,
  "checkpoint.keep": 3,
  "log.every": 1,
  "log.samples": 0,
  "log.progress": "none",
}
# On eight devices weights are cut, and stacks of matrices spread.
_MESH = {1: {}, 8: {"mesh.data": 2, "mesh.fsdp": 4}}


def text() -> dict[str, str]:
  """Documents of made-up sentences, by file name."""
  rng = random.Random(0)
  words = [
    "".join(rng.choice("bdfklmnprst") + rng.choice("aeiou") for _ in range(n))
    for n in [1, 2, 2, 2, 3, 3] * 10
  ]

  def sentence():
    count = rng.randrange(4, 10)
    # The square prefers the first words, as a language does.
    chosen = [words[int(60 * rng.random() ** 2)] for _ in range(count)]
    return " ".join(chosen).capitalize() + "."

  return {
    f"{i:02d}.txt": " ".join(sentence() for _ in range(10)) + "\n"
    for i in range(60)
  }


def config(name: str, devices: int):
  """The validated configuration of a run."""
  import importlib

  from lm.config import load

  file, changes = RUNS[name]
  module = importlib.import_module(f"ml_collections_configs.{file}")
  built = module.get_config()
  for key, value in (_SMALL | changes | _MESH[devices]).items():
    with built.unlocked():
      if key == "optim.kwargs":
        built.optim.kwargs = value
      else:
        built.update_from_flattened_dict({key: value})
  return load.from_config_dict(built)


def enter(folder: pathlib.Path):
  """Copies `runs/` to `folder` and prepares the text there.

  The working directory must be `folder` from then on.
  """
  from lm.data import prepare

  shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
  with contextlib.chdir(folder):
    c = config("tiny", 1)
    prepare.prepare(c.data, c.eval.sets, log=lambda _: None)


def train(name: str, devices: int, workdir: str = "") -> list[float]:
  """Trains a run to its end, or resumes it; returns the 50 losses.

  Args:
    name: Of the configuration.
    devices: All of this process's.
    workdir: Of the run, below the current folder; "" for a new one.
  """
  from lm.runs import metrics
  from lm.train import loop

  workdir = workdir or f"new-{name}-{devices}"
  code = loop.train(config(name, devices), workdir)
  if code:
    raise RuntimeError(f"The run {name} ended with exit code {code}.")
  column = metrics.read(workdir)["train/loss"]
  if column.steps.tolist() != list(range(1, STEPS + 1)):
    raise RuntimeError(f"The run {name} has losses at {column.steps}.")
  return column.values.tolist()


def scores(workdir: str, *arguments: str) -> list[float]:
  """The losses that `python -m lm.evaluate` prints of a run."""
  from lm import evaluate

  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = evaluate.main([f"--workdir={workdir}", *arguments])
  if code:
    raise RuntimeError(f"Evaluating {workdir} ended with exit code {code}.")
  return [float(x) for x in re.findall(r"(\d+\.\d+) ±", out.getvalue())]


def in_process(task: str, devices: int, folder: pathlib.Path, names=()) -> dict:
  """Does a task of `TASKS` in a new process with some devices.

  Args:
    task: Of `TASKS`.
    devices: CPU devices.
    folder: Was entered (`enter`).
    names: Configurations; all of the task's by default.

  Returns:
    By name, what the task returned, or the traceback as a string.
  """
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = os.environ | {
    "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
    "NPROC": "64",
    "TF_CPP_MIN_LOG_LEVEL": "2",
  }
  script, out = pathlib.Path(__file__).resolve(), folder / "out.json"
  command = [sys.executable, str(script), f"--task={task}", f"--out={out}"]
  command += [f"--devices={devices}", *names]
  subprocess.run(command, cwd=folder, env=env, check=True)
  return json.loads(out.read_text())


def _resumed(name, devices):
  return train(name, devices, name)  # Begun where nothing is stored.


def _evaluated(name, devices):
  del devices
  more = [["--average=ema:0.9"]] if name == "tiny" else []
  return [scores(name, *arguments) for arguments in [[], *more]]


TASKS = {
  "new": (train, RUNS),
  "resumed": (_resumed, RUNS),
  "evaluated": (_evaluated, STORED),
}


def _child(task: str, devices: int, out: str, names: list[str]):
  """Does a task in this process and writes what `in_process` returns."""
  import traceback

  import jax
  from golden import make_digest

  if jax.device_count() != devices:
    raise RuntimeError(f"{jax.device_count()} devices, wanted {devices}.")
  function, all_names = TASKS[task]
  results = dict(fingerprint=make_digest.fingerprint())
  for name in names or all_names:
    try:
      results[name] = function(name, devices)
    except Exception:
      results[name] = traceback.format_exc()
  pathlib.Path(out).write_text(json.dumps(results))


def _keep(folder: pathlib.Path):
  """Moves what a kill after update 20 leaves of the new runs to `runs/`."""
  for name in STORED:
    source, target = folder / f"new-{name}-1", FOLDER / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
      source / "checkpoints" / str(STOP),
      target / "checkpoints" / str(STOP),
      # Notes of Orbax with the path of this machine; nothing reads them.
      ignore=shutil.ignore_patterns("commit_success.txt"),
    )
    shutil.copy(source / "config.json", target)
    run = json.loads((source / "run.json").read_text())
    run["status"] = "running"
    run.pop("step", None)
    (target / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= STOP]
    (target / "metrics.jsonl").write_text("".join(kept))


def _export():
  from lm import export

  for name in STORED:
    more = ["--quantize"] if name == "lotion_int4" else None
    average = ["--average=ema:0.9"] if name == "tiny" else []
    for ending, flags in (("", average), (".rounded", more)):
      if flags is not None:
        out = FOLDER / f"{name}{ending}.npz"
        arguments = [f"--workdir={FOLDER / name}", f"--out={out}", *flags]
        with contextlib.redirect_stdout(io.StringIO()):
          code = export.main(arguments)
        if code:
          raise RuntimeError(f"The export {out} failed.")


def write(results_only: bool):
  """Writes the golden files."""
  if not results_only:
    (FOLDER / "text").mkdir(parents=True, exist_ok=True)
    for name, content in text().items():
      (FOLDER / "text" / name).write_text(content)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    enter(folder)
    results = {f"losses_{n}": in_process("new", n, folder) for n in (1, 8)}
    if not results_only:
      _keep(folder)
      _export()
      shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    results["scores"] = in_process("evaluated", 1, folder)
    results["resumed"] = in_process("resumed", 1, folder)
  _refuse_failures(results)
  (FOLDER / "results.json").write_text(json.dumps(results, indent=0) + "\n")


def _refuse_failures(results: dict):
  for part, by_name in results.items():
    for name, value in by_name.items():
      if isinstance(value, str) and name != "fingerprint":
        raise RuntimeError(f"{part} of {name}:\n{value}")


def check() -> int:
  """Prints the runs whose losses differ from the recorded; returns how many."""
  recorded = json.loads((FOLDER / "results.json").read_text())
  differ = cases = 0
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    enter(folder)
    for part, task, n in (
      ("losses_1", "new", 1),
      ("losses_8", "new", 8),
      ("resumed", "resumed", 1),
    ):
      wanted, found = recorded[part], in_process(task, n, folder)
      for name in wanted:
        if name not in found:
          continue
        cases += name != "fingerprint"
        if found[name] != wanted[name]:
          differ += name != "fingerprint"
          print(f"{task}, {n} devices, {name}: {_apart(found, wanted, name)}")
  verdict = f"{differ} differ" if differ else "all equal"
  print(f"{cases} cases, {verdict}")
  return differ


def _apart(found: dict, wanted: dict, name: str) -> str:
  if isinstance(found[name], str):
    return f"{found[name]}, recorded {wanted[name]}"
  pairs = list(zip(found[name], wanted[name], strict=True))
  first = next(i for i, (a, b) in enumerate(pairs, 1) if a != b)
  largest = max(abs(a - b) for a, b in pairs)
  return f"losses differ from update {first} on, by {largest:.1e} at most"


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--check", action="store_true", help="compare only")
  parser.add_argument("--results", action="store_true", help="results alone")
  parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
  parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--out", help=argparse.SUPPRESS)
  parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.task:
    _child(args.task, args.devices, args.out, args.names)
  elif args.check:
    sys.exit(1 if check() else 0)
  else:
    write(args.results)
