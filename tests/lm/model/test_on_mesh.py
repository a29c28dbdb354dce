"""The model split over 8 fake devices computes what one device does."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm import mesh as meshes
from lm import spec
from lm.model import Transformer, attention, loss_sums

ROWS = np.random.default_rng(0).integers(1, 29, size=(4, 13)).astype(np.int32)


@pytest.mark.parametrize(("layers", "chunk"), [("scan", 0), ("unroll", 16)])
def test_loss_gradients_and_init_are_those_of_one_device(
  make_config, layers, chunk
):
  cfg = make_config(layers=layers, G=2, qk_norm="full", loss_chunk=chunk)
  model = Transformer(cfg)

  def init(key):
    return spec.init_params(cfg, key)

  def loss(p, rows):
    sums = loss_sums(model, p, rows)
    return sums.loss / sums.weight

  value_and_grad = jax.value_and_grad(loss)
  params = init(jax.random.key(0))
  alone = jax.jit(value_and_grad)(params, ROWS)
  mesh = meshes.make_mesh((2, 2, 2))
  shardings = jax.tree.map(
    lambda s: NamedSharding(
      mesh, meshes.partition_spec(s.axes, s.shape, mesh.shape)
    ),
    spec.param_specs(cfg),
  )
  with jax.set_mesh(mesh):
    split = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    rows = jax.device_put(ROWS, meshes.batch_sharding(mesh))
    # Another function object, or jit would reuse the trace without a mesh.
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))
    together = step(split, rows)
    text = step.lower(split, rows).as_text()
  # To the last bit as the trainer compiles it: train/test_sharded.py.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
    params,
    split,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    alone,
    together,
  )
  assert text.count("sharding_constraint") >= 8  # The constraints are there.
  shards = split["embed"]["table"].addressable_shards
  assert len({str(shard.index) for shard in shards}) == 4  # fsdp x tensor.


def test_splash_is_the_plain_attention(make_config):
  """The TPU kernel, interpreted, on two devices; documents and groups."""
  cfg = make_config(D=512, H=4, G=2)
  shape = (2, 128, 4, 128)
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, shape) for key in keys[:3])
  k, v = k[:, :, :2], v[:, :, :2]
  tokens = jax.random.randint(keys[3], shape[:2], 0, 30)
  starts = attention.document_starts(tokens, cfg.eos_id)
  places = attention.Places(np.arange(128)[None], starts, None)
  expected = attention.attend(q, k, v, places, cfg)
  with jax.set_mesh(meshes.make_mesh((2, 1, 1), jax.devices()[:2])):
    split = jax.jit(attention.splash_attention, static_argnames="interpret")
    fused = split(q, k, v, starts, interpret=True)
  np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class _Device:
  id: int
  slice_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


def test_slices_differ_along_data_alone():
  devices = [_Device(i, i // 8) for i in range(16)]
  assert meshes.count_slices(devices) == 2
  assert meshes.count_slices(jax.devices()) == 1
  laid = meshes.across_slices((4, 2, 2), devices[::-1])
  slices = np.vectorize(lambda device: device.slice_index, [int])(laid)
  assert (slices == np.array([0, 0, 1, 1])[:, None, None]).all()
  assert len({device.id for device in laid.flat}) == 16
  with pytest.raises(ValueError, match=r"data=1 .*multiple of the 2 slices"):
    meshes.across_slices((1, 8, 2), devices)


def test_the_platform_is_that_of_described_devices():
  """A program for a TPU may have its kernels where there is none."""
  assert meshes.platform() == "cpu"
  described = jax.sharding.AbstractDevice("TPU v5", None, "tpu")
  devices = jax.sharding.AbstractMesh(
    (2,), ("data",), abstract_device=described
  )
  with jax.sharding.use_abstract_mesh(devices):
    assert meshes.platform() == "tpu"
