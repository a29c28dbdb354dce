"""The model split over 8 fake devices computes what one device does."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from losses import loss_sums

from lm.model import attention
from lm.model import mesh as meshes
from lm.model import params as param_table
from lm.model.products import Context
from lm.model.transformer import Transformer

ROWS = np.random.default_rng(0).integers(1, 29, size=(4, 13)).astype(np.int32)


@pytest.mark.parametrize(("layers", "chunk"), [("scan", 0), ("unroll", 16)])
def test_loss_gradients_and_init_are_those_of_one_device(
  make_config, layers, chunk
):
  cfg = make_config(layers=layers, G=2, qk_norm="full", loss_chunk=chunk)
  model = Transformer(cfg)

  def init(key):
    return param_table.init_params(cfg, key)

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
    param_table.param_specs(cfg),
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
  expected = attention.attend(q, k, v, places, Context(cfg))
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


def test_slices_of_unequal_size_are_refused():
  devices = [_Device(i, int(i >= 3)) for i in range(8)]
  with pytest.raises(ValueError, match="slices have 3, 5 devices"):
    meshes.across_slices((2, 4, 1), devices)


@pytest.mark.parametrize("sizes", [(1, 16, 1), (4, 4, 1)])
def test_gpus_of_several_hosts_may_share_parameters(sizes):
  """Each host is a slice to jax; its network is no slower than a TPU's."""
  gpus = [_Device(i, i // 8, "gpu", "GPU") for i in range(16)]
  mesh = meshes.make_mesh(sizes, gpus)
  assert mesh.devices.shape == sizes
  slices = np.vectorize(lambda device: device.slice_index, [int])(mesh.devices)
  assert (slices.reshape(-1) == np.repeat([0, 1], 8)).all()
  tpus = [_Device(i, i // 8, "tpu", "TPU v5p") for i in range(16)]
  with pytest.raises(ValueError, match=r"fsdp=16 .*within a slice"):
    meshes.make_mesh((1, 16, 1), tpus)


def test_a_model_from_elsewhere_lies_by_its_shapes():
  """Flax's own layers and optax's state, which name no axes of ours."""
  mesh = meshes.make_mesh((2, 4, 1))
  model = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(64)])
  tx = optax.adamw(1e-2)
  x = jax.random.normal(jax.random.key(0), (16, 128))

  def init(key):
    params = model.init(key, x)
    return params, tx.init(params)

  def step(state, x):
    params, opt_state = state
    loss, grads = jax.value_and_grad(
      lambda params: jnp.mean(model.apply(params, x) ** 2)
    )(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  expected = jax.jit(init)(jax.random.key(0))
  places = meshes.tree_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
  state = jax.jit(init, out_shardings=places)(jax.random.key(0))
  kernel = state[0]["params"]["layers_0"]["kernel"]
  assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
  assert kernel.addressable_shards[0].data.shape == (128, 64)
  rows = meshes.batch_sharding(mesh)
  sharded = jax.jit(
    step, in_shardings=(places, rows), out_shardings=(places, None)
  )
  for _ in range(3):
    state, loss = sharded(state, jax.device_put(x, rows))
    expected, wanted = jax.jit(step)(expected, x)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_the_platform_is_that_of_described_devices():
  """A program for a TPU may have its kernels where there is none."""
  assert meshes.platform() == "cpu"
  described = jax.sharding.AbstractDevice("TPU v5", None, "tpu")
  devices = jax.sharding.AbstractMesh(
    (2,), ("data",), abstract_device=described
  )
  with jax.sharding.use_abstract_mesh(devices):
    assert meshes.platform() == "tpu"
