"""One flag system: typed values, one message a mistake, nothing kept."""

import pytest
from absl import flags as absl_flags

from lm import evaluate, export, generate, main, report, sweep
from lm.cli import flags
from lm.cli.flags import Flag
from lm.config.errors import InputError
from lm.data import prepare
from lm.tools import estimate, plan

_FLAGS = (
  Flag("name", str, "a text", "x"),
  Flag("count", int, "a number", 3, least=0, most=9),
  Flag("rate", float, "a number", least=0),
  Flag("deep", bool, "yes or no", False),
  Flag("sets", list, "names", ["a"]),
  Flag("kind", str, "one of three", "one", choices=("one", "two", "three")),
)
_TINY = "--config=ml_collections_configs/tiny.py"


def _parse(*argv, **options):
  return flags.parse(argv, "Does nothing.", _FLAGS, **options)


def _in_order(given):
  return tuple(getattr(given, flag.name) for flag in _FLAGS)


def test_values_have_their_types():
  given = _parse("--name=a=b", "--count", "4", "--rate=1e-3", "--deep",
                 "--sets=a, b,", "--kind=two")  # fmt: skip
  expected = ("a=b", 4, 1e-3, True, ["a", "b"], "two")
  assert _in_order(given) == expected
  assert type(_parse("--rate=2").rate) is float
  assert _parse("--nodeep").deep is False
  assert _parse("--name=").name == ""


def test_defaults_are_what_was_declared():
  assert _in_order(_parse()) == ("x", 3, None, False, ["a"], "one")


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--nmae=x"], "--nmae is not a flag.*Did you mean '--name'"),
    (["--count=1.5"], "--count=1.5 must be a whole number"),
    (["--count=-1"], "--count=-1 must be >= 0"),
    (["--count=10"], "--count=10 must be <= 9"),
    (["--rate=fast"], "--rate=fast must be a number"),
    (["--rate=nan"], "--rate=nan must be >= 0"),
    (["--kind=tow"], "--kind=tow is not one of one, two.*Did you mean 'two'"),
    (["--name"], "Missing value for flag --name"),
    (["--deep=perhaps"], "--deep=perhaps"),
    (["stray"], "Unexpected argument 'stray'.*--name=value"),
    (["--config.seed=1"], "--config.seed is not a flag"),
    (["--flagfile=x"], "--flagfile is not a flag"),
  ],
)
def test_mistakes(argv, message):
  with pytest.raises(InputError, match=message):
    _parse(*argv)


def test_all_that_is_missing_is_named():
  needed = (flags.CONFIG, flags.WORKDIR)
  message = "--config=FILE.py and --workdir=TEXT"
  with pytest.raises(InputError, match=message):
    flags.parse(["--workdir="], None, needed)


def test_arguments_without_a_flag():
  given = _parse("a", "--count=4", "b", positionals="RUN")
  assert (given.positionals, given.count) == (["a", "b"], 4)
  with pytest.raises(InputError, match="at least one RUN"):
    _parse("--count=4", positionals="RUN")


def test_what_follows_two_dashes_is_left_alone():
  given = _parse("--count=4", "--", "--count=5", "--", "a", rest=True)
  assert (given.count, given.rest) == (4, ["--count=5", "--", "a"])


def test_a_configuration_and_its_overrides(tmp_path):
  def parse(*argv):
    return flags.parse(argv, None, (flags.CONFIG,)).config

  config = parse(
    "--config.model.D=8", _TINY, "--config.train.num_steps", "5",
    "--noconfig.model.tied", "--config.eval.sets=('a','b')",
  )  # fmt: skip
  assert (config.model.D, config.train.num_steps) == (8, 5)
  assert (config.model.tied, config.eval.sets) == (False, ("a", "b"))
  assert parse(_TINY).model.D != 8  # Nothing is kept.
  file = tmp_path / "sized.py"
  file.write_text(
    "from ml_collections_configs import base\n"
    "def get_config(size='1'):\n"
    "  c = base.get_config()\n"
    "  c.model.D = int(size)\n"
    "  return c\n"
  )
  assert parse(f"--config={file}:64").model.D == 64
  assert parse(f"--config={file}").model.D == 1


def test_programs_leave_the_flags_of_the_process_alone(capsys):
  before = set(absl_flags.FLAGS)
  with pytest.raises(SystemExit):
    main.main(["--help"])
  assert main.main([_TINY, "--config.model.DD=3"]) == 2
  assert "model.DD" in capsys.readouterr().err
  assert set(absl_flags.FLAGS) == before


@pytest.mark.parametrize(
  "module",
  [main, evaluate, generate, report, sweep, export, prepare, plan, estimate],
)
def test_help_is_the_docstring_and_every_flag(module, capsys):
  with pytest.raises(SystemExit) as end:
    module.main(["--help"])
  assert not end.value.code
  shown = capsys.readouterr().out
  assert shown.startswith(module.__doc__.strip())
  for flag in module._FLAGS:
    assert f"\n  --{flag.name}" in shown
  assert max(map(len, shown.splitlines())) <= 80
