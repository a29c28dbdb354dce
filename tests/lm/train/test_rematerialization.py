"""No update makes the compiler replicate an array to find it a new place."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from lm.model import mesh as meshes
from lm.step import build

# What XLA writes, to the descriptor of stderr, where it knows no other way.
_SIGN = "Involuntary full rematerialization"
_FACTORS = {"precondition_frequency": 2}
_OUTER = {
  "optim__name": "gauss_newton",
  "optim__kwargs": {},
  "gauss_newton__inner_steps": 2,
  "schedule__name": "constant",
  "schedule__warmup": 0.0,
  "data__batch_size": 24,
  "train__microbatch_size": 8,
}
_METHODS = {
  "adamw": {},
  "muon": {"optim__name": "muon", "optim__kwargs": {}},
  "shampoo": {"optim__name": "shampoo", "optim__kwargs": _FACTORS},
  "soap": {"optim__name": "soap", "optim__kwargs": _FACTORS},
  "gauss_newton": _OUTER,
  "lotion": {"quant__method": "lotion", "quant__strength": 10.0},
}
# Devices along data, fsdp and tensor: stacks along one of the first two, or
# along both; parameters along axes of the stacks, others, or both.
_MESHES = ((8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2))
_DEFAULT = {("soap", (2, 2, 2)), ("muon", (4, 2, 1))}


@pytest.fixture
def uncached():
  """Programs from a cache say nothing."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


def _cases():
  for case in itertools.product(_METHODS, _MESHES):
    marks = () if case in _DEFAULT else pytest.mark.slow
    yield pytest.param(*case, marks=marks)


@pytest.mark.parametrize(("method", "mesh"), _cases())
def test_an_update_replicates_nothing_to_move_it(
  tiny, capfd, uncached, method, mesh
):
  sizes = dict(zip(meshes.AXES, mesh, strict=True))
  changes = {f"mesh__{axis}": size for axis, size in sizes.items()}
  changes |= {"model__D": 64, "model__F": 128, "model__N": 4}
  config = tiny.config(**changes | _METHODS[method])
  config = build.resolve(config, build.find_data(config))
  parts = build.build(config, jax.devices())
  with jax.set_mesh(parts.mesh):
    build.compile_step(parts)
  assert _SIGN not in capfd.readouterr().err


def test_it_would_be_seen(capfd, uncached):
  mesh = meshes.make_mesh((4, 2, 1))

  def place(*spec):
    return NamedSharding(mesh, PartitionSpec(*spec))

  move = jax.jit(
    lambda x: jax.lax.with_sharding_constraint(x + 1, place("data")),
    in_shardings=place(None, ("fsdp", "data")),
  )
  move.lower(jax.ShapeDtypeStruct((4, 16, 64), jnp.float32)).compile()
  assert _SIGN in capfd.readouterr().err
