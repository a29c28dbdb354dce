"""What a configuration must satisfy: each rule says key, value, rule, way out.

The rules here need no device, no file and no signature of an optimiser. What
needs one is checked by `lm/methods`, `lm/model/mesh.py` and `lm/data`, also
before the run starts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from . import ramp
from .names import CORPORA, CORPUS_PREFIXES, SAVED, nearest
from .schema import Config, ModelConfig

_REMAT = ("none", "full", "dots")
# Pieces of BPE: 256 bytes, 3 control pieces and a character at least; as many
# as the n-gram floor can count at most. The text sets narrower limits.
_BPE_PIECES = (260, 2**21 - 1)


def bounds(config: Config) -> list[str]:
  """What is wrong with single values, or else with the growth of batches."""
  return list(of_section(config, "config")) or list(ramp.problems(config))


def rules(config: Config) -> list[str]:
  """Every rule between keys that a configuration within `bounds` breaks."""
  found: list[str] = []
  for rule in (_model, _data, _train, _optim, _mesh, _quant, _product, _eval):
    found += rule(config)
  return found


def of_section(section: Any, path: str) -> Iterator[str]:
  """What the fields of the dataclasses say of their values."""
  for field in dataclasses.fields(section):
    name, value = f"{path}.{field.name}", getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from of_section(value, name)
    choices = field.metadata.get("choices")
    if choices and value not in choices:
      hint = nearest(value, choices)
      yield f"{name}={value!r} is not one of {', '.join(choices)}.{hint}"
    least = field.metadata.get("least")
    if least is not None and not value >= least:  # Also catches NaN.
      unit = field.metadata["unit"]
      yield f"{name}={value} must be >= {least}{unit and f' ({unit})'}."
    most = field.metadata.get("most")
    if most is not None and not value <= most:
      yield f"{name}={value} must be <= {most}."
    above = field.metadata.get("above")
    if above is not None and not value > above:
      yield f"{name}={value} must be > {above}."


def _multiples(size: int, of: int) -> str:
  """The multiples of `of` around `size`, as a hint."""
  below = size // of * of
  return " or ".join(str(n) for n in (below, below + of) if n > 0)


def _model(config: Config) -> Iterator[str]:
  m = config.model
  if m.D % m.H:
    yield (
      f"config.model.D={m.D} does not divide over config.model.H={m.H} heads; "
      f"e.g. --config.model.D={_multiples(m.D, m.H)}."
    )
  elif m.positions.startswith("rope") and m.D // m.H % 2:
    yield (
      f"config.model.D={m.D} / config.model.H={m.H} gives heads of "
      f"{m.D // m.H} channels, but rotary positions turn pairs: make it even, "
      "or take another config.model.positions."
    )
  if m.H % m.G:
    fits = [g for g in range(1, m.H + 1) if m.H % g == 0]
    yield (
      f"config.model.G={m.G} must divide config.model.H={m.H}; one of {fits}."
    )
  yield from _rematerialised(m)
  if m.norm == "rmsnorm" and m.norm_bias:
    yield (
      "config.model.norm_bias=True goes with norm='layernorm' only; an RMS "
      "norm has no bias."
    )
  if m.qk_norm_type == "rmsnorm" and m.qk_norm_bias:
    yield (
      "config.model.qk_norm_bias=True goes with qk_norm_type='layernorm' only."
    )


def _rematerialised(m: ModelConfig) -> Iterator[str]:
  key, known = f"config.model.remat={m.remat!r}", ", ".join(SAVED)
  kind, colon, listed = m.remat.partition(":")
  if not colon and kind in _REMAT:
    return
  if not colon or kind != "names":
    yield (
      f"{key} is not one of {', '.join(_REMAT)} or names:NAME,NAME with names "
      f"out of {known}.{nearest(kind, (*_REMAT, 'names'))}"
    )
    return
  names = listed.split(",")
  if "" in names:
    yield f"{key} has an empty name; write names:NAME,NAME, out of {known}."
  for name in dict.fromkeys(names):
    if name and name not in SAVED:
      yield (
        f"{key} names {name!r}, which the model does not have; known: {known}."
        f"{nearest(name, SAVED)}"
      )
    if name and names.count(name) > 1:
      yield f"{key} names {name!r} twice."
  if "mlp_gate" in names and m.mlp != "swiglu":
    yield f"{key}: 'mlp_gate' is of config.model.mlp='swiglu', not {m.mlp!r}."


def _data(config: Config) -> Iterator[str]:
  d = config.data
  if "://" in d.root:
    yield (
      f"config.data.root={d.root} is not a folder of this machine; mount the "
      "bucket and give the folder (docs/pods.md)."
    )
  if not d.mixture:
    yield "config.data.mixture is empty; name a corpus, e.g. (('sotu', 1.0),)."
  names = []
  for entry in d.mixture:
    if not isinstance(entry, tuple) or len(entry) != 2:
      yield (
        f"config.data.mixture has {entry!r}, expected pairs (corpus, weight)."
      )
      continue
    name, weight = entry
    names.append(name)
    yield from _corpus("data.mixture", name)
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
      yield (
        f"config.data.mixture gives {name!r} the weight {weight!r}; weights "
        "are finite numbers > 0. Leave the corpus out instead."
      )
  for name in sorted({n for n in names if names.count(n) > 1}, key=str):
    yield f"config.data.mixture names {name!r} twice; add the weights up."
  if d.limit_rows and d.select:
    yield (
      f"config.data.limit_rows={d.limit_rows} and config.data.select="
      f"{d.select!r} both choose rows; leave one of them at its default."
    )
  if d.tokenizer not in ("bpe", "bytes") and not d.tokenizer.startswith("sp:"):
    hint = nearest(d.tokenizer, ("bpe", "bytes"))
    yield (
      f"config.data.tokenizer={d.tokenizer!r} is not bpe, bytes or sp:FILE."
      f"{hint}"
    )
  least, most = _BPE_PIECES
  if d.tokenizer == "bpe" and not least <= d.vocab_size <= most:
    yield (
      f"config.data.vocab_size={d.vocab_size} must be in [{least}, {most}] for "
      "BPE: 256 bytes, 3 control pieces and a character at least, and what the "
      "n-gram floor can count at most. Take e.g. 4096, or "
      "--config.data.tokenizer=bytes."
    )


def _corpus(key: str, name: Any) -> Iterator[str]:
  if not isinstance(name, str):
    yield f"config.{key} names {name!r}; corpora are strings."
  elif name not in CORPORA and not name.startswith(CORPUS_PREFIXES):
    hint = nearest(name, CORPORA)
    yield (
      f"config.{key} names the unknown corpus {name!r}; known: "
      f"{', '.join(CORPORA)}, dir:PATH, tfds:PATH.{hint}"
    )


def _optim(config: Config) -> Iterator[str]:
  o, s = config.optim, config.schedule
  if not math.isfinite(o.learning_rate):
    yield f"config.optim.learning_rate={o.learning_rate} must be finite."
  for key in ("start_factor", "end_factor"):
    if getattr(s, key) > 1:
      yield (
        f"config.schedule.{key}={getattr(s, key)} is a share of the peak rate, "
        "in [0, 1]."
      )
  length = {
    "fraction": 1.0,
    "steps": ramp.num_steps(config),
    "tokens": config.train.num_tokens
    or ramp.num_steps(config) * config.tokens_per_step,
  }[s.unit]
  if s.warmup + (s.decay if s.name == "wsd" else 0) > length > 0:
    both = "warmup + decay" if s.name == "wsd" else "warmup"
    yield (
      f"config.schedule.{both}={s.warmup + (s.decay if s.name == 'wsd' else 0)}"
      f" exceeds the run, {length} {s.unit}: shorten it, lengthen the run, or "
      "check config.schedule.unit."
    )
  if s.name == "inverse_sqrt" and s.warmup == s.offset == 0:
    yield (
      "config.schedule.name='inverse_sqrt' decays from the end of the warm-up: "
      "config.schedule.warmup or config.schedule.offset must be > 0."
    )
  if s.offset and s.name != "inverse_sqrt":
    yield (
      f"config.schedule.offset={s.offset} goes with schedule.name="
      f"'inverse_sqrt', not {s.name!r}; set it to 0."
    )


def _train(config: Config) -> Iterator[str]:
  t, batch = config.train, config.data.batch_size
  if bool(t.num_steps) == bool(t.num_tokens):
    yield (
      f"config.train.num_steps={t.num_steps} and config.train.num_tokens="
      f"{t.num_tokens}: exactly one must be > 0. Set the other to 0."
    )
  if t.microbatch_size and batch % t.microbatch_size:
    fits = [n for n in range(1, batch + 1) if batch % n == 0]
    close = min(fits, key=lambda n: abs(n - t.microbatch_size))
    yield (
      f"config.train.microbatch_size={t.microbatch_size} does not divide "
      f"config.data.batch_size={batch}; e.g. "
      f"--config.train.microbatch_size={close}."
    )
  if config.train.stop_at_loss and not config.eval.every:
    yield (
      f"config.train.stop_at_loss={t.stop_at_loss} is checked at evaluations, "
      "but config.eval.every=0 makes none."
    )
  if t.branch_from and t.init_from:
    yield (
      f"config.train.branch_from={t.branch_from!r} goes on from a run and "
      f"init_from={t.init_from!r} begins anew from weights; set one of them."
    )
  if t.stop_at_average and t.stop_at_average not in config.optim.averages:
    yield (
      f"config.train.stop_at_average={t.stop_at_average!r} is not one of "
      f"config.optim.averages={config.optim.averages}."
    )
  if t.stop_at_average and not t.stop_at_loss:
    yield (
      f"config.train.stop_at_average={t.stop_at_average!r} goes with "
      "config.train.stop_at_loss, the loss of the average to stop at."
    )


def _mesh(config: Config) -> Iterator[str]:
  sizes = config.mesh.sizes
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
    yield (
      f"config.mesh (data, fsdp, tensor)={sizes}: sizes are >= 1, and at most "
      "one is -1 (the rest of the devices)."
    )
  if config.mesh.rules == "fsdp_shape" and config.mesh.tensor != 1:
    yield (
      f"config.mesh.tensor={config.mesh.tensor}: config.mesh.rules="
      "'fsdp_shape' splits arrays over fsdp alone; set tensor to 1, or rules "
      "to 'logical'."
    )
  rows, known = config.microbatch_size, math.prod(s for s in sizes[:2] if s > 0)
  if known > 0 and rows % known:
    yield (
      f"{rows} rows a pass (config.train.microbatch_size or "
      f"config.data.batch_size) do not divide over config.mesh.data * "
      f"config.mesh.fsdp = {known}; e.g. {_multiples(rows, known)} rows."
    )


def _quant(config: Config) -> Iterator[str]:
  q = config.quant
  if q.method in ("rat", "lotion") and q.scale in ("pow2_floor", "nvfp4"):
    yield (
      f"config.quant.scale={q.scale!r} saturates the largest weights, so that "
      f"rounding at random, of method {q.method!r}, is biased; take 'absmax' "
      "or 'pow2_ceil'."
    )
  if q.scale == "nvfp4" and q.grid != "fp4":
    yield f"config.quant.scale='nvfp4' is for grid 'fp4', not {q.grid!r}."
  if not 0 <= q.curvature_decay < 1:
    yield f"config.quant.curvature_decay={q.curvature_decay} must be in [0, 1)."
  if not 0 <= q.warmup <= 1:
    yield f"config.quant.warmup={q.warmup} is a fraction of the run, in [0, 1]."
  if not 1 <= q.fisher_rows <= config.microbatch_size:
    yield (
      f"config.quant.fisher_rows={q.fisher_rows} must be in "
      f"[1, {config.microbatch_size}], the rows of one pass."
    )
  try:
    re.compile(q.paths)
  except re.error as error:
    yield f"config.quant.paths={q.paths!r} is no regular expression: {error}."


def _product(config: Config) -> Iterator[str]:
  p, entry = config.product, config.model.product
  used = p.recipe != "none" or p.overrides or p.switch_at
  if used and entry not in ("plain", "slots"):
    yield (
      f"config.product.recipe={p.recipe!r} and config.model.product={entry!r} "
      "both say how products are computed; leave one of them out."
    )
  last, total = 0, ramp.num_steps(config)
  for entry in p.switch_at:
    fits = isinstance(entry, tuple) and len(entry) == 2
    if not fits or not isinstance(entry[0], int) or isinstance(entry[0], bool):
      yield (
        f"config.product.switch_at has {entry!r}, expected pairs (updates "
        "made, recipe), e.g. ((1000, 'none'),)."
      )
      return
    if not last < entry[0] < total:
      yield (
        f"config.product.switch_at has {entry[0]} updates, which must be more "
        f"than {last} and fewer than the run's {total}."
      )
    last = entry[0]


def _eval(config: Config) -> Iterator[str]:
  for name in config.eval.sets:
    yield from _corpus("eval.sets", name)
  if len(set(config.eval.sets)) < len(config.eval.sets):
    yield f"config.eval.sets={config.eval.sets} names a corpus twice."
  if config.train.stop_at_loss and not config.eval.sets:
    yield "config.train.stop_at_loss needs a set in config.eval.sets."
  if config.checkpoint.keep_best and not (
    config.eval.sets and config.eval.every
  ):
    yield (
      "config.checkpoint.keep_best=True needs evaluations: config.eval.sets "
      "and config.eval.every > 0."
    )
