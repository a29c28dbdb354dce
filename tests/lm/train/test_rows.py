"""Each row of a batch is numbered, and its key follows from the number."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ramp
from lm.data.stream import open_stream
from lm.objectives import view
from lm.runs import resume
from lm.step import build
from lm.train import loop

_RAMP = {
  "data__batch_schedule": ((0, 8), (8 * 32 * 2, 16), (8 * 32 * 6, 32)),
  "train__microbatch_size": 8,
  "train__num_steps": 0,
  "train__num_tokens": 112 * 32,
}


def _parts(tiny, devices, **changes):
  config = tiny.config(mesh__data=devices, **changes)
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:devices])


def _read(tiny, devices, first, updates, **changes):
  """Tokens and numbers that count, of each update after `first`."""
  parts = _parts(tiny, devices, **changes)
  stream = open_stream(parts.config.data, parts.config.seed)
  length = parts.config.data.seq_length
  tokens = ramp.tokens_at(ramp.of_config(parts.config), length, first)
  clock = resume.Clock(first, tokens // length, tokens)
  session = types.SimpleNamespace(parts=parts, stream=stream, clock=clock)
  found = []
  with loop._buffers(session) as buffers:
    for (batch, rows), _ in zip(buffers, range(updates), strict=False):
      n = rows // parts.buffer_shape[1]
      index = np.asarray(batch.index[:n]).reshape(-1)
      read = np.asarray(batch.tokens[:n]).reshape(rows, -1)
      found.append((index, read))
  return found, stream


@pytest.mark.parametrize(
  ("devices", "changes", "sizes"),
  [
    (1, {}, [8] * 6),
    (8, {}, [8] * 6),
    (1, {"train__microbatch_size": 4}, [8] * 6),
    (2, {"train__microbatch_size": 2}, [8] * 6),
    (1, _RAMP, [8, 8, 16, 16, 32, 32]),
    (8, _RAMP, [8, 8, 16, 16, 32, 32]),
  ],
)
@pytest.mark.parametrize("first", [0, 3])
def test_rows_are_numbered_by_what_the_run_has_seen(
  tiny, devices, changes, sizes, first
):
  found, stream = _read(tiny, devices, first, 6, **changes)
  assert len(found) == 6 - first
  ends = np.cumsum([0, *sizes])
  for update, (index, tokens) in enumerate(found, start=first):
    wanted = np.arange(ends[update], ends[update + 1])
    np.testing.assert_array_equal(index, wanted)
    rows = np.concatenate([stream.rows(int(j), 1) for j in wanted])
    np.testing.assert_array_equal(tokens, rows)


def test_the_key_of_a_row_is_that_of_its_number_alone():
  def draws(seed, stream, index):
    keys = view.row_keys(seed, stream, index)
    return jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys)

  def alone(seed, stream, i):
    key = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.random.bits(jax.random.fold_in(key, int(i)), (3,))

  index = jnp.array([5, 0, 2**31 - 1, 5, 17, 18, 19, 20], jnp.int32)
  mesh = jax.make_mesh((8,), ("data",))
  split = jax.NamedSharding(mesh, jax.P("data"))
  spread = jax.jit(draws, static_argnums=(0, 1), in_shardings=split)
  for seed, stream in ((0, view.TRAINING), (1, view.EVALUATION)):
    wanted = np.stack([alone(seed, stream, i) for i in index])
    np.testing.assert_array_equal(draws(seed, stream, index), wanted)
    np.testing.assert_array_equal(
      spread(seed, stream, jax.device_put(index, split)), wanted
    )
  assert len({view.TRAINING, view.EVALUATION, 1, 2}) == 4  # See `rounded.py`.


@pytest.mark.parametrize("microbatch", [0, 2])
def test_the_update_of_next_tokens_reads_no_numbers(tiny, microbatch):
  parts = _parts(tiny, 1, train__microbatch_size=microbatch)
  n, b, width = parts.buffer_shape
  with jax.set_mesh(parts.mesh):
    text = build.compile_step(parts).as_text()
  assert f"s32[{n},{b},{width}]" in text  # The tokens.
  found = re.findall(rf"%(\S+) = s32\[{n},{b}\]", text)
  assert len(found) == (1 if microbatch else 0)  # An argument ...
  for name in found:
    assert not re.search(rf"%{re.escape(name)}[,)]", text)  # ... of no use.
