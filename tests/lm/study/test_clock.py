"""Costs of updates against counts by hand, on the tiny run."""

from types import SimpleNamespace

import pytest

from lm.config import load
from lm.step import flops
from lm.study import clock

_NEWTON = {
  "optim__name": "gauss_newton", "optim__kwargs": {"b1": 0.9},
  "gauss_newton__optimizer": "adamw", "optim__clip_norm": 0.0,
  "schedule__name": "constant", "schedule__warmup": 0.0,
  "gauss_newton__inner_steps": 3, "gauss_newton__search_batches": 1,
  "train__microbatch_size": 2,
}  # fmt: skip
_MICRO = _NEWTON | {
  "optim__name": "gauss_newton_microsteps", "train__microbatch_size": 0,
  "data__batch_size": 2,
}  # fmt: skip
_SOAP = {"optim__name": "soap", "optim__kwargs": {"weight_decay": 0.1}}


def _config(tiny, **changes):
  facts = dict(vocab_size=258, eos_id=256, pad_id=257, platform="cpu")
  return load.resolve(tiny.config(**changes), **facts)


def test_adamw_is_three_forward_passes_and_eight_bytes(tiny):
  config = _config(tiny)
  m = config.model
  found = clock.cost(config)
  assert found.flop_per_token == pytest.approx(
    3 * flops.forward_flops_per_token(m, causal_half=False)
  )
  # By hand: q, k, v, out, gate of the feed-forward, scores and values, head.
  matrices = (3 if m.mlp.endswith("glu") else 2) * m.D * m.F + 4 * m.D**2
  by_hand = 6 * (m.N * (matrices + 2 * m.L * m.D) + m.D * m.V)
  assert found.flop_per_token == pytest.approx(by_hand)
  assert found.tokens_per_update == 8 * 32
  counts = found.bytes_per_parameter * found.parameters - 8 * found.parameters
  assert 0 < counts <= 16  # Of updates, four bytes each.


def test_averages_and_microbatches_cost_nothing_more(tiny):
  plain = clock.cost(_config(tiny))
  more = {"optim__averages": ("ema:0.9",), "train__microbatch_size": 2}
  found = clock.cost(_config(tiny, **more))
  assert found == pytest.approx(plain)


def test_soap_has_its_words_its_turns_and_its_refreshes(tiny):
  config = _config(tiny, **_SOAP)
  m, found = config.model, clock.cost(config)
  # Words: two moments everywhere; a factor and a basis for each side.
  sides = m.N * 2 * (4 * 2 * m.D**2 + 2 * (m.D**2 + m.F**2))
  words = found.bytes_per_parameter * found.parameters / 4
  extra = words - 2 * found.parameters
  assert extra == pytest.approx(sides, rel=0.02)  # And the counts.
  seldom = {"weight_decay": 0.1, "precondition_frequency": 50}
  less = clock.cost(_config(tiny, **_SOAP | {"optim__kwargs": seldom}))
  cheaper = (found.flop_per_token - less.flop_per_token) * 8 * 32
  # A refresh of a side n: products P Q, and R and Q of its QR.
  refresh = m.N * sum(2 * n**3 + 8 / 3 * n**3 for n in [m.D] * 10 + [m.F] * 2)
  assert cheaper > 0.9 * refresh * (1 / 10 - 1 / 50)


def test_gauss_newton_has_the_products_of_its_inner_steps(tiny):
  config = _config(tiny, **_NEWTON)
  forward = flops.forward_flops_per_token(config.model, causal_half=False)
  # Three batches with the passes of 5 forward ones, one with the candidates'.
  assert clock.cost(config).flop_per_token == pytest.approx(
    forward * (3 * 5 + 5) / 4, rel=0.05
  )


def test_times_are_those_of_updates(tiny):
  found = clock.time_updates({"adamw": _config(tiny)}, rounds=1, turn=2)
  assert 0 < found["adamw"] < 1e5
  with pytest.raises(ValueError, match="turn=0 must be >= 1"):
    clock.time_updates({}, turn=0)


def test_methods_take_turns_and_a_halted_one_is_told(tiny, monkeypatch):
  asked, halted = [], []

  def compile_step(parts):
    def update(state, buffer, n):
      assert n == parts.buffer_shape[0]
      asked.append(parts.config.optim.name)
      return SimpleNamespace(halted=bool(halted)), {}

    return update

  monkeypatch.setattr(clock.build, "init_state", lambda parts: ())
  monkeypatch.setattr(clock.build, "compile_step", compile_step)
  monkeypatch.setattr(clock.jax, "block_until_ready", lambda found: found)
  configs = {
    "a": _config(tiny),
    "b": _config(tiny, **_NEWTON),
    "c": _config(tiny, **_MICRO),
  }
  clock.time_updates(configs, rounds=2, turn=6)
  names = [config.optim.name for config in configs.values()]
  # One more each time, which does not count; microsteps in fours.
  turns = zip(names, (7, 2, 9), strict=True)
  assert asked == [name for name, n in turns for _ in range(n)] * 2
  halted.append(True)
  with pytest.raises(ValueError, match="a: a loss or a gradient was not fin"):
    clock.time_updates(configs)
