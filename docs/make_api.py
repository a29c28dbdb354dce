"""Writes `docs/api.md` from the docstrings of `optim` and `theory`.

    python docs/make_api.py            # Writes the page.
    python docs/make_api.py --check    # Says whether the page is up to date.

Signatures are `inspect.signature`'s, without annotations: Python versions print
annotations differently. Texts are the docstrings'. Fields of a NamedTuple are
explained by the docstring's "Attributes", or by the comments beside them. The
words of state are computed by `jax.eval_shape`.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import pathlib
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from docstrings import (
  block,
  call,
  comments,
  errors,
  escaped,
  fields,
  filled,
  parse,
  prose,
  shown,
  sources,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/make_api.py"

# Rooms of `optim` and modules of `theory`, in the order of the page.
OPTIM = {
  "methods": "Optimisers",
  "averages": "Averages of the weights",
  "newton": "Gauss-Newton",
  "curvature": "Curvature of a loss",
  "rounding": "Grids of few bits",
  "lotion": "LOTION",
  "diagonal": "Diagonal preconditioners",
  "matrices": "Leaves as matrices, and their place on a mesh",
  "common": "Any optimiser",
}
THEORY = {
  "types": "Values",
  "problems": "Problems",
  "sgd_moments": "SGD, step by step",
  "risk_closed": "SGD in closed form",
  "schedules": "Schedules",
  "averages": "Averages, step by step",
  "averages_closed": "Averages in closed form",
  "methods": "Momentum and other linear methods",
  "method_moments": "Moments of linear methods",
  "stability": "Stability",
  "bounds": "Bounds",
  "best_steps": "The best step size",
  "critical_batches": "Critical batch sizes",
  "fits": "Scaling laws",
  "power_fits": "Power laws",
  "identifiability": "What data determine",
  "rates": "Exponents",
  "volterra": "Volterra equations",
  "adaptive": "Sign and normalised SGD",
  "logistic": "Logistic regression",
  "quantized": "Weights on a grid",
  "monte_carlo": "Simulation",
  "precision": "Precision",
}
# Each transform with its own options, and variants: what is run is what stands.
WORDS = (
  "soap(1e-3)",
  "scale_by_soap()",
  "scale_by_soap(one_sided=True)",
  "scale_by_soap(factorized=True)",
  "scale_by_soap(one_sided=True, factorized=True)",
  "soap_h(0.018)",
  "kl_soap(1e-3)",
  "kl_shampoo(1e-3)",
  "scale_by_kl_shampoo()",
  "soap_muon(0.02)",
  "scale_by_soap_muon()",
  "moso(1e-3)",
  "scale_by_moso()",
  "shampoo(1e-3)",
  "scale_by_shampoo()",
  "muon(0.02)",
  "muon_h(0.018)",
  "normuon(0.02)",
  "normuon_h(0.018)",
  "scale_by_muon()",
  "scale_by_muon(variance='rows')",
  "scale_by_muon(variance='longer')",
  "scale_by_muon(variance='entries')",
  "scale_by_muon(variance='matrix')",
  "adam_h(0.018)",
  "on_sphere(scale_by_muon(), 0.018)",
  "descend(scale_by_muon(), 0.02, 0.1)",
  "with_update_rms(scale_by_muon(), update_rms=0.2)",
  "normalize_spectral()",
  "rescaled(scale_by_muon(), 1.0)",
  "dampened_sgd(1.0)",
  "scale_by_dampened_momentum()",
  "accelerated_sgd(0.1)",
  "scale_by_accelerated_sgd()",
  "scale_by_accelerated_sgd(precondition='after')",
  "adafactor(1e-3)",
  "scale_by_adafactor()",
  "sophia_g(1e-3)",
  "scale_by_sophia_g()",
  "adalayer(1e-3)",
  "scale_by_adalayer()",
  "ademamix(1e-3)",
  "scale_by_ademamix()",
  "simplified_ademamix(1e-3)",
  "scale_by_simplified_ademamix()",
  "mars(1e-3)",
  "mars(1e-3, variant='lion')",
  "mars(1e-3, variant='lion', max_norm=None)",
  "mars(1e-3, variant='shampoo')",
  "mars(1e-3, variant='muon')",
  "scale_by_mars()",
  "mars_correction()",
  "primal_averaging(optax.scale_by_rms(), 1e-3)",
  "primal_averaging(scale_by_soap(b1=0.0), 1e-3)",
  "schedule_free_adamw(1e-3)",
  "schedule_free_sgd(1.0)",
  "average_weights(optax.identity(), 0.99)",
  "average_weights(optax.identity(), names=('ema:0.9', 'age:25'))",
  "gauss_newton(None, None, optax.adamw(1.0), inner_steps=8)",
  "gauss_newton(None, None, optax.sgd(1.0), inner_steps=8, solver=CG())",
  "gauss_newton_microsteps(optax.adamw(1.0), inner_steps=8)",
  "lotion_adamw(1e-3, Quantizer(INT4), 1.0)",
  "add_rounding_penalty(Quantizer(INT4), 1.0)",
  "with_rounding_penalty(scale_by_soap(), Quantizer(INT4), 1.0,"
  " factor_diagonal)",
  "scale_by_diagonal_preconditioner()",
  "scale_by_diagonal_preconditioner(basis='kronecker')",
)
_TRANSFORMS = (
  optax.GradientTransformation,
  optax.GradientTransformationExtraArgs,
)


class State(NamedTuple):
  """What `eval_shape` says of one transform."""

  call: str
  words: float  # Float32 words a parameter.
  kinds: list[type]  # This package's NamedTuples in the state, outer first.


def render() -> str:
  """The page."""
  states = transform_states()
  parts = [
    "# API\n\n"
    f"`{COMMAND}` makes this page from the docstrings. Edit the\n"
    "docstrings, not this page. A test fails while the page is stale.\n\n"
    "Memory is the state in float32 words a parameter, for the matrices of a\n"
    "transformer block of width 64 (12 d^2 parameters). `jax.eval_shape` "
    "computes it;\nthe calls stand as they were run."
  ]
  for package, groups in (("optim", OPTIM), ("theory", THEORY)):
    names = public_names(package, groups)
    parts.append(contents(package, names, groups))
    for group, title in groups.items():
      parts.append(f"## {package}: {title}")
      for name in names[group]:
        parts.append(entry(package, name, states.get(name, [])))
  public = [getattr(importlib.import_module("optim"), n) for n in all_names()]
  kinds = [kind for rows in states.values() for s in rows for kind in s.kinds]
  hidden = [kind for kind in dict.fromkeys(kinds) if kind not in public]
  parts.append("## States\n\nStates of transforms that have no public name.")
  for kind in sorted(hidden, key=lambda kind: kind.__name__):
    parts.append("\n\n".join([f"### {kind.__name__}", *class_parts(kind)]))
  return "\n\n".join(parts) + "\n"


def all_names() -> list[str]:
  """Public names of `optim`."""
  return importlib.import_module("optim").__all__


def public_names(package: str, groups: dict[str, str]) -> dict[str, list[str]]:
  """{group: names in the order in which the sources define them}."""
  module = importlib.import_module(package)
  folder = pathlib.Path(module.__file__ or "").parent
  tree = ast.parse((folder / "__init__.py").read_text())
  found: dict[str, list[tuple[str, int, str]]] = {group: [] for group in groups}
  for node in tree.body:
    if isinstance(node, ast.ImportFrom):
      path = (node.module or "").split(".")
      lines = definitions(folder.joinpath(*path).with_suffix(".py"))
      for alias in node.names:
        found[path[0]].append((path[-1], lines[alias.name], alias.name))
  names = {group: [row[-1] for row in sorted(found[group])] for group in found}
  listed = sorted(name for group in names.values() for name in group)
  if listed != sorted(module.__all__):
    raise ValueError(f"{package}.__all__ is not what its __init__ imports.")
  return names


def definitions(path: pathlib.Path) -> dict[str, int]:
  """{name: line} of what a file defines."""
  found = {}
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      found[node.name] = node.lineno
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      found[node.targets[0].id] = node.lineno
  return found


def contents(package, names, groups) -> str:
  """Links to all entries of a package, a line a group."""
  lines = [f"# {package}\n"]
  for group, title in groups.items():
    links = ", ".join(link(f"{package}.{name}") for name in names[group])
    lines.append(f"- {title}: {links}")
  return "\n".join(lines)


def link(title: str) -> str:
  """A link to a heading, under the name that GitHub gives to its anchor."""
  return f"[{title.split('.')[-1]}](#{title.lower().replace('.', '')})"


def entry(package: str, name: str, states: list[State]) -> str:
  """All that is said of one name."""
  value = getattr(importlib.import_module(package), name)
  title = f"{package}.{name}"
  parts = [f"### {title}"]
  if inspect.isclass(value):
    parts += class_parts(value, title)
  elif inspect.isfunction(value):
    parts += function_parts(value, title, states)
  elif isinstance(value, dict):
    keys = [f"{key}={type(item).__name__}" for key, item in value.items()]
    parts.append(block(filled(f"{title} = dict", keys)))
  else:
    arguments = [f"{k}={shown(v)}" for k, v in vars(value).items()]
    parts.append(block(filled(f"{title} = {type(value).__name__}", arguments)))
  return "\n\n".join(parts)


def function_parts(function: Any, title: str, states: list[State]) -> list[str]:
  """Signature, text, arguments, result, errors, state, memory and source."""
  doc, signature = parse(inspect.getdoc(function)), inspect.signature(function)
  kinds = signature.return_annotation
  if title.startswith("optim.") and kinds in _TRANSFORMS and not states:
    raise ValueError(f"WORDS has no call of the transform {title}.")
  parts = [block(call(title, signature)), prose(doc.text)]
  texts = doc.entries("Args")
  if texts:
    parts.append("Arguments:\n\n" + fields(signature.parameters, texts))
  if "Returns" in doc.sections:
    parts.append(prose("Returns: " + "\n".join(doc.sections["Returns"])))
  parts += errors(doc)
  if states:
    kinds = dict.fromkeys(kind for row in states for kind in row.kinds)
    known = all_names()
    shown_kinds = ", ".join(
      link(f"optim.{k.__name__}" if k.__name__ in known else k.__name__)
      for k in kinds
    )
    parts.append(f"State: {shown_kinds or 'of optax'}.")
    rows = [f"- {row.words:.1f}: `{row.call}`" for row in states]
    parts.append("Memory, words a parameter:\n\n" + "\n".join(rows))
  return parts + sources(doc)


def class_parts(kind: type, title: str | None = None) -> list[str]:
  """Signature, text, fields and methods of a class."""
  doc = parse(inspect.getdoc(kind))
  names = getattr(kind, "_fields", ())
  if dataclasses.is_dataclass(kind):
    names = tuple(field.name for field in dataclasses.fields(kind))
  parts = []
  if title and names:
    parts.append(block(call(title, inspect.signature(kind))))
  parts.append(prose(doc.text))
  texts = comments(kind) | doc.entries("Attributes")
  if names:
    parameters = inspect.signature(kind).parameters
    shown_fields = {name: parameters[name] for name in names}
    parts.append("Fields:\n\n" + fields(shown_fields, texts))
  methods = [
    f"- `{name}{'' if isinstance(value, property) else '()'}`: "
    + escaped(parse(inspect.getdoc(value)).text.split("\n\n")[0])
    for name, value in vars(kind).items()
    if name[0] != "_" and isinstance(value, (property, types.FunctionType))
  ]
  if methods:
    parts.append("Properties and methods:\n\n" + "\n".join(methods))
  return parts + errors(doc) + sources(doc)


def transform_states() -> dict[str, list[State]]:
  """{transform: what its state is, for each call in `WORDS`}."""
  optim: Any = importlib.import_module("optim")
  d = 64
  block = {k: (d, d) for k in "qkvo"} | dict(w1=(d, 4 * d), w2=(4 * d, d))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in block.items()}
  size = sum(p.size for p in params.values())
  found: dict[str, list[State]] = {}
  for text in WORDS:
    names = {name: getattr(optim, name) for name in optim.__all__}
    state = jax.eval_shape(eval(text, names | dict(optax=optax)).init, params)
    words = sum(
      x.size * x.dtype.itemsize / 4
      for x in jax.tree.leaves(state)
      if jnp.issubdtype(x.dtype, jnp.floating)
    )
    kinds = dict.fromkeys(type(node) for node in named_tuples(state))
    row = State(text, words / size, list(kinds))
    found.setdefault(text.split("(")[0], []).append(row)
  return found


def named_tuples(node: Any):
  """The NamedTuples of `optim` within a tree, outer ones first."""
  if type(node).__module__.startswith("optim.") and hasattr(node, "_fields"):
    yield node
  if isinstance(node, (tuple, list)):
    children = list(node)
  else:
    children = list(node.values()) if isinstance(node, dict) else []
  for child in children:
    yield from named_tuples(child)


def main(arguments: list[str]) -> int:
  """Writes the page, or checks it; returns the exit code."""
  if arguments not in ([], ["--check"]):
    print(f"usage: {COMMAND} [--check]", file=sys.stderr)
    return 2
  text = render()
  if not arguments:
    PAGE.write_text(text)
    return 0
  old = PAGE.read_text() if PAGE.exists() else ""
  if old == text:
    print(f"{PAGE.name} is up to date.")
    return 0
  pairs = itertools.zip_longest(old.splitlines(), text.splitlines())
  line = 1 + next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
  print(
    f"{PAGE.name} is stale from line {line} on: run `{COMMAND}`.",
    file=sys.stderr,
  )
  return 1


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))  # The packages beside this file.
  sys.exit(main(sys.argv[1:]))
