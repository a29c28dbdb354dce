"""Whatever is wrong with the input: one clear message, and exit code 2.

Nearly all of it is found without a device: no platform is called "nowhere". One
process reads all of these, one after the other, and makes no folder.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from lm.config import errors
from lm.config.errors import ConfigError

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# Overrides of the tiny run -> words that the message must hold.
_CASES = {
  # Keys.
  "model.DD=3": ["config.model.DD", "model.D"],
  "modle.D=3": ["config.modle.D", "model.D"],
  "learning_rate=1": ["config.learning_rate", "optim.learning_rate"],
  "optim.lr=1": ["config.optim.lr"],
  "data.batchsize=1": ["config.data.batchsize", "data.batch_size"],
  "train.steps=5": ["config.train.steps"],
  "optim.kwargs.beta1=0.9": ["optim.kwargs.beta1"],
  # Types.
  "model.D=wide": ["model.D", "wide"],
  "model.D=1.5": ["model.D", "1.5"],
  "model.tied=perhaps": ["model.tied=perhaps", "True or False"],
  "optim.learning_rate=fast": ["learning_rate", "fast"],
  "data.mixture=sotu": ["mixture"],
  "train.num_steps=many": ["num_steps", "many"],
  # Choices.
  "model.norm=layernrom": ["config.model.norm", "layernorm"],
  "model.norm_position=post": ["config.model.norm_position", "after"],
  "model.positions=rope": ["config.model.positions", "rope_half"],
  "model.qk_norm=heads": ["config.model.qk_norm", "'head'"],
  "model.mlp=geglu": ["config.model.mlp", "gelu"],
  "model.ffn=dence": ["config.model.ffn", "Did you mean 'dense'?"],
  "model.mixer=softmac optim.name=adamx": ["'softmax'?", "'adamax'?"],
  "model.ffn_kwargs.a=1": ["config.model.ffn_kwargs.a", "at once"],
  'model.product_kwargs={"a":1}': ["config.model.product_kwargs.a"],
  "product.recipe=mxfp9": ["config.product.recipe='mxfp9'", "mxfp8_e4m3"],
  "product.recip=nvfp4": ["config.product.recip", "product.recipe"],
  "product.recipe=nvfp4 model.product=narrow": ["config.product.recipe"],
  "product.overrides=(('ffn.inn','none'),)": ["'ffn.inn'", "ffn.in"],
  "product.overrides=(('head','fp8'),)": ["'head'", "'fp8' is not a recipe"],
  "product.overrides=(('head',(('g','fp4'),)),)": ["'head'", "g_dw"],
  "product.overrides=(('head',(('g_dw','fp3'),)),)": ["'fp3' begins", "fp4"],
  "product.overrides=(('head',(('g_dw','fp4/nvfp4/random'),)),)": [
    "saturates",
    "nvfp4_up",
  ],
  "product.overrides=(('head',(('g_dw','int4/nvfp4'),)),)": ["grid=E2M1 only"],
  "product.overrides=(('head',(('g_dw','fp4/0'),)),)": ["block_size=0"],
  "product.overrides=('head',)": ["config.product.overrides", "pairs"],
  "product.recipe=mxfp4 product.high_layers=1": ["high_layers=1", "unroll"],
  "product.recipe=mxfp4 product.high_layers=2 model.layers=unroll": [
    "config.model.N=2",
    "fewer",
  ],
  "product.high_layers=-1": ["config.product.high_layers", ">= 0"],
  "product.recipe=mxfp4 quant.method=lotion": [
    "config.quant.method='lotion'",
    "E2M1, pow2_ceil, block_size=32",
    "w_y",
  ],
  "product.switch_at=((9,'none'),)": ["switch_at", "fewer than the run's 6"],
  "product.switch_at=(('a','none'),)": ["switch_at", "pairs"],
  "product.switch_at=((3,'none'),(2,'none'))": ["2 updates", "more than 3"],
  "product.switch_at=((3,'mxfp'),)": ["'mxfp' is not a recipe"],
  "product.recipe=mxfp8_e4m3 optim.name=gauss_newton": [
    "config.product.recipe='mxfp8_e4m3'",
    "forward mode",
    "weights_only",
  ],
  "model.attention=flash": ["config.model.attention", "splash"],
  "model.init=xavier": ["config.model.init", "mitchell"],
  "model.layers=loop": ["config.model.layers", "unroll"],
  "model.remat=some": ["config.model.remat", "none"],
  "model.remat=name:q": ["config.model.remat", "names:NAME", "mlp_in"],
  "model.remat=names:": ["config.model.remat", "empty", "mlp_in"],
  "model.remat=names:q,": ["config.model.remat", "empty", "mlp_in"],
  "model.remat=names": ["config.model.remat", "names:NAME", "mlp_in"],
  "model.remat=names:attn": ["'attn'", "Did you mean 'attention'", "mlp_in"],
  "model.remat=names:q,k,q": ["config.model.remat", "'q' twice"],
  "model.remat=names:q,mlp_gate": ["config.model.remat", "swiglu"],
  "model.compute_dtype=float16": ["config.model.compute_dtype", "bfloat16"],
  "schedule.name=cosin": ["config.schedule.name", "cosine"],
  "schedule.unit=epochs": ["config.schedule.unit", "steps"],
  "optim.decay=none": ["config.optim.decay", "matrices"],
  "optim.embeddings=both": ["config.optim.embeddings", "one_sided"],
  "optim.embeddings=one_sided": ["config.optim.embeddings", "soap"],
  'optim.name=soap optim.kwargs={"placement":2}': [
    "placement",
    "trainer",
  ],
  "data.root=gs://bucket/data": ["config.data.root", "docs/pods.md"],
  # Growing batches; the tiny run is measured in steps.
  "data.batch_schedule=((0,8),(99,16))": ["batch_schedule", "num_tokens"],
  "data.batch_schedule=((5,8),)": ["batch_schedule", "(0, 8)"],
  "data.batch_schedule=((0,8),(9,12))": ["batches of 12 rows", "8"],
  "data.batch_schedule=((0,8),(9,8),(9,16))": ["not increasing"],
  "data.batch_schedule=(8,16)": ["batch_schedule", "pairs"],
  "data.batch_schedule=((0,8),(99,16)) train.num_steps=0": ["num_tokens"],
  "data.batch_schedule=((0,8),(99,True))": ["pairs", "integers"],
  "mesh.rules=fsdp_shape mesh.tensor=2": ["config.mesh.tensor=2", "logical"],
  "schedule.name=seesaw train.num_steps=0": ["num_tokens"],
  "schedule.name=seesaw schedule.alpha=20.0": ["never grow", "alpha=20.0"],
  "schedule.name=seesaw schedule.max_batch_size=8": ["max_batch_size=8"],
  "schedule.name=seesaw schedule.alpha=1.0": ["config.schedule.alpha=1.0"],
  "schedule.name=seesaw schedule.end_factor=0": ["schedule.end_factor"],
  # Rounding.
  "quant.method=lotoin": ["config.quant.method", "lotion"],
  "quant.grid=int5": ["config.quant.grid", "int4"],
  "quant.method=lotion quant.strength=-1": ["config.quant.strength=-1"],
  "quant.method=rat quant.scale=pow2_floor": ["quant.scale", "pow2_ceil"],
  "quant.method=ptq quant.scale=nvfp4": ["config.quant.scale", "fp4"],
  "quant.method=ptq quant.block_size=24": ["quant.block_size=24", "divide"],
  "quant.method=ptq quant.paths=nothing": ["config.quant.paths", "mlp/in"],
  "quant.paths=(": ["config.quant.paths", "regular expression"],
  "quant.draws=1": ["config.quant.draws=1", ">= 2"],
  "quant.fisher_rows=9": ["config.quant.fisher_rows=9", "8"],
  "quant.method=lotion quant.curvature=factors": ["curvature", "soap"],
  "optim.name=lotion_adamw": ["config.quant.method='lotion'"],
  "mesh.rules=auto": ["config.mesh.rules", "logical"],
  "log.progress=fancy": ["config.log.progress", "plain"],
  # Ranges.
  "model.N=0": ["config.model.N=0", ">= 1"],
  "model.D=-8": ["config.model.D=-8", ">= 1"],
  "model.norm_eps=0": ["config.model.norm_eps", "> 0"],
  "model.z_loss=-1": ["config.model.z_loss"],
  "model.loss_chunk=-2": ["config.model.loss_chunk"],
  "data.seq_length=0": ["config.data.seq_length"],
  "data.batch_size=0": ["config.data.batch_size"],
  "data.limit_rows=-1": ["config.data.limit_rows"],
  "data.limit_rows=3 data.select=a.npz": ["limit_rows=3", "select='a.npz'"],
  "data.prefetch=-1": ["config.data.prefetch"],
  "optim.learning_rate=-1": ["config.optim.learning_rate"],
  "optim.learning_rate=nan": ["config.optim.learning_rate"],
  "optim.learning_rate=inf": ["config.optim.learning_rate", "finite"],
  "optim.averages=('ema:1.0',)": ["config.optim.averages", "[0, 1)"],
  "optim.averages=('age:2','age:2')": ["config.optim.averages", "twice"],
  "optim.averages=('tail:2',)": ["config.optim.averages", "(0, 1]"],
  "train.stop_at_average=ema:0.9": ["stop_at_average='ema:0.9'", "averages=()"],
  "optim.clip_norm=-1": ["config.optim.clip_norm"],
  "schedule.warmup=-0.1": ["config.schedule.warmup"],
  "schedule.warmup=2.0": ["config.schedule.warmup", "unit"],
  "schedule.end_factor=2": ["config.schedule.end_factor", "[0, 1]"],
  "schedule.offset=-1": ["config.schedule.offset"],
  "schedule.offset=0.5": ["config.schedule.offset", "inverse_sqrt"],
  "log.every=0": ["config.log.every=0"],
  "checkpoint.keep=0": ["config.checkpoint.keep=0"],
  "seed=-1": ["config.seed=-1"],
  "seed=4294967296": ["config.seed=4294967296", "<= 4294967295"],
  # Sizes that do not fit each other.
  "model.D=33": ["config.model.D=33", "config.model.H=2", "34"],
  "model.D=34": ["rotary", "even"],
  "model.G=3": ["config.model.G=3", "config.model.H=2"],
  "model.norm=rmsnorm model.norm_bias=True": ["config.model.norm_bias"],
  "train.microbatch_size=3": ["config.train.microbatch_size=3", "=2"],
  "train.num_tokens=9": ["num_steps", "num_tokens", "exactly one"],
  "train.num_steps=0": ["num_steps", "num_tokens", "exactly one"],
  "mesh.data=3 mesh.fsdp=1 mesh.tensor=1": ["8 rows", "mesh.data"],
  "mesh.data=-1 mesh.fsdp=-1": ["at most one is -1"],
  "mesh.data=0": ["config.mesh"],
  "mesh.data=2": ["config.mesh.data=2", "1."],
  "train.stop_at_loss=2.0": ["stop_at_loss", "eval.every"],
  "checkpoint.keep_best=True": ["keep_best", "eval.every"],
  "schedule.name=inverse_sqrt schedule.warmup=0": ["inverse_sqrt", "warmup"],
  "model.V=100": ["config.model.V=100", "model.V=0"],
  # The optimiser.
  "optim.name=adamv": ["config.optim.name='adamv'", "adamw"],
  "optim.name=scale_by_adam": ["scale_by_adam", "learning_rate"],
  "optim.name=lion": ["config.optim.kwargs.eps", "lion", "b1=0.9"],
  'optim.kwargs={"b3":0.9}': ["config.optim.kwargs.b3", "b1=0.9"],
  'optim.kwargs={"learning_rate":1}': ["kwargs.learning_rate", "trainer"],
  'optim.kwargs={"b1":"x"}': ["config.optim.kwargs", "b1"],
  "optim.kwargs=[1]": ["optim.kwargs"],
  # Data.
  'data.mixture=(("sotuu",1.0),)': ["sotuu", "sotu"],
  'data.mixture=(("sotu",0.0),)': ["sotu", "> 0"],
  'data.mixture=(("sotu",1.0),("sotu",1.0))': ["sotu", "twice"],
  'data.mixture=("sotu",)': ["config.data.mixture", "pairs"],
  'eval.sets=("nowhere",)': ["config.eval.sets", "nowhere"],
  "data.tokenizer=word": ["config.data.tokenizer", "bytes"],
  "data.tokenizer=sp:/no/such.model": ["/no/such.model"],
  "data.tokenizer=bpe data.vocab_size=259": [
    "vocab_size=259",
    "[260, 2097151]",
  ],
  "data.tokenizer=bpe data.vocab_size=2097152": ["vocab_size=2097152"],
  "data.seq_length=64": ["not prepared", "32", "lm.data.prepare"],
  "data.root=/nowhere": ["not prepared", "lm.data.prepare"],
  "train.init_from=/no/run": ["config.train.init_from", "/no/run"],
}
# What depends on the number of devices, on shapes of parameters, or is found
# where a first update is traced.
_WANT_DEVICES = (
  "mesh.data=2",
  "model.V=100",
  "quant.method=ptq quant.block_size=24",
  "quant.method=ptq quant.paths=nothing",
  'optim.kwargs={"b1":"x"}',
)


# Reads lists of flags, and writes the exit code and the message of each.
_EACH = """
import contextlib, io, json, sys
from lm import main
results = {}
for name, flags in json.load(sys.stdin).items():
  with contextlib.redirect_stderr(io.StringIO()) as said:
    code = main.main(flags)
  results[name] = code, said.getvalue()
json.dump(results, sys.stdout)
"""


def _run(command, platforms, **options):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, *command],
    check=False,
    cwd=_ROOT,
    env=env | {"JAX_PLATFORMS": platforms},
    capture_output=True,
    text=True,
    **options,
  )


def _check(code, said, words):
  assert code == errors.BAD_INPUT, said
  assert "Traceback" not in said
  assert said.startswith("error: ")
  for word in words:
    assert word in said


def _fails(flags, words, platforms="nowhere"):
  """Runs the program; checks code and message."""
  done = _run(["-m", "lm.main", *flags], platforms)
  _check(done.returncode, done.stderr, words)


def _flags(tiny, workdir, overrides):
  changes = [f"--config.{override}" for override in overrides.split(" ")]
  return [*tiny.flags(workdir), *changes]


@pytest.fixture(scope="module")
def without_devices(tiny, tmp_path_factory):
  """A folder, and by overrides the code and the message of a run in it."""
  folder = tmp_path_factory.mktemp("bad") / "run"
  cases = {
    overrides: _flags(tiny, folder, overrides)
    for overrides in _CASES
    if overrides not in _WANT_DEVICES
  }
  done = _run(["-c", _EACH], "nowhere", input=json.dumps(cases))
  assert done.returncode == 0, done.stderr
  return folder, json.loads(done.stdout)


@pytest.mark.parametrize(
  "overrides", [case for case in _CASES if case not in _WANT_DEVICES]
)
def test_a_wrong_configuration_touches_nothing(without_devices, overrides):
  folder, results = without_devices
  _check(*results[overrides], _CASES[overrides])
  assert not folder.exists()


@pytest.mark.parametrize("overrides", _WANT_DEVICES)
def test_what_only_devices_or_a_trace_show(tiny, tmp_path, overrides):
  flags = _flags(tiny, tmp_path / "run", overrides)
  _fails(flags, _CASES[overrides], platforms="cpu")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_empty_mixture(tiny):
  """Not among the flags: ml_collections reads () there as no override."""
  with pytest.raises(ConfigError, match="mixture is empty"):
    tiny.config(data__mixture=())


def test_there_are_at_least_sixty_cases():
  assert len(_CASES) >= 60


@pytest.mark.parametrize(
  "overrides",
  [
    "model.DD=3 optim.lr=1",  # Keys.
    "model.D=wide train.num_steps=many model.tied=perhaps",  # Types.
    "model.N=0 schedule.name=cosin seed=-1",  # Values.
    "model.G=3 optim.name=adamv mesh.data=0",  # Rules of all layers.
  ],
)
def test_several_problems_are_listed_at_once(tiny, tmp_path, overrides):
  names = [override.split("=")[0] for override in overrides.split(" ")]
  words = [name.removesuffix(".data") for name in names]
  _fails(_flags(tiny, tmp_path / "run", overrides), words)


def test_a_right_configuration_wants_devices(tiny, tmp_path):
  """Guards the tests above: there are none, and the program would use them."""
  done = _run(["-m", "lm.main", *tiny.flags(tmp_path)], "nowhere")
  assert done.returncode == 1
  assert "nowhere" in done.stderr


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["--config", "--workdir"]),
    (["--config=/no/such/file.py", "--workdir=x"], ["/no/such/file.py"]),
    (["--confg=x"], ["--confg", "--config"]),
    (["--workdir=x", "extra"], ["extra", "--name=value"]),
    (["--config.model.D=3", "--workdir=x"], ["--config=FILE.py"]),
    (["--workdir"], ["Missing value", "--workdir"]),
    (["--undefok=confg", "--confg=x"], ["--undefok"]),
    (["--distributed=all"], ["--distributed=all", "auto"]),
    (["--num_processes=two"], ["--num_processes=two", "whole number"]),
    (["--process_id=-1"], ["--process_id=-1", ">= 0"]),
  ],
)
def test_wrong_flags(flags, words):
  _fails(flags, words)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def get_config(:\n", ["invalid syntax", "line 1"]),
    ("x = 1\n", ["no function get_config"]),
    ("def get_config():\n  return 1\n", ["returned int"]),
    ("def get_config():\n  return D\n", ["line 2", "NameError", "'D'"]),
  ],
)
def test_a_config_file_that_cannot_be_read(tmp_path, text, words):
  file = tmp_path / "broken.py"
  file.write_text(text)
  _fails([f"--config={file}", "--workdir=x"], ["broken.py", *words])


def test_flags_of_several_processes(tiny, tmp_path):
  flags = tiny.flags(tmp_path)
  _fails([*flags, "--process_id=0"], ["--process_id", "explicit"])
  _fails([*flags, "--distributed=explicit"], ["--coordinator"])


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
  (tmp_path / "file").write_text("")
  _fails(tiny.flags(tmp_path / "file"), ["--workdir", "cannot be written"])


def test_damaged_prepared_data(tiny, tmp_path):
  data = tmp_path / "data"
  shutil.copytree(tiny.overrides["data.root"], data)
  flags = tiny.flags(tmp_path / "run", data__root=str(data))
  record = next(data.glob("bytes/*/train*.array_record*"))
  record.write_bytes(record.read_bytes()[:100])
  _fails(flags, ["damaged", "prepare it again"], platforms="cpu")
  for meta in data.glob("bytes/*-L32/meta.json"):
    meta.write_text("{")
  _fails(flags, ["damaged", "meta.json"])


def test_prepare_needs_text_in_utf8(tmp_path):
  text = tmp_path / "text"
  text.mkdir()
  for i in range(30):
    (text / f"{i}.txt").write_text("some words\n")
  (text / "bad.txt").write_bytes(b"abc\xff\xfe")
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "lm.data.prepare",
      "--config=ml_collections_configs/base.py",
      f"--config.data.mixture=(('dir:{text}',1.0),)",
      f"--config.eval.sets=('dir:{text}',)",
      "--config.data.tokenizer=bytes",
      f"--config.data.root={tmp_path / 'data'}",
    ],
    check=False,
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == errors.BAD_INPUT
  assert "bad.txt" in done.stderr
  assert "Traceback" not in done.stderr
