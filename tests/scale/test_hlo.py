"""The reader of compiled programs, on programs that can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.scale import hlo

_MESH = {"data": 2, "fsdp": 2, "tensor": 2}

_PROGRAM = """HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[8,8]{1,0} all-gather(%x), replica_groups=[4,2]<=[2,2,2]T(2,1,0), \
dimensions={0}
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %x)
}

%free (p: s32[]) -> s32[] {
  %s = (f32[2]{0}, bf16[3]{0}) all-reduce(%a, %b), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
  %v = s32[] while(%u), condition=%c, body=%free
  %r = f32[10]{0} reduce-scatter(%a), replica_groups=mesh['x'=4,'y'=1,'z'=2]\
 {'x'}, dimensions={0}
  %m = f32[7]{0} all-reduce(%a), replica_groups=mesh['x'=2,'y'=2,'z'=2], \
device_ids=([2,2,2]T(2,1,0)) {'z'}, to_apply=%add
  %q = f32[5]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %n = f32[99]{0} all-reduce(%a), replica_groups=[8,1]<=[8], to_apply=%add
  %y = (f32[4]{0}, f32[8]{0}) all-gather-start(%a), \
replica_groups=[2,4]<=[2,4], dimensions={0}
  ROOT %z = f32[4,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_program_by_hand():
  found = hlo.collectives(_PROGRAM, _MESH, passes=3)
  assert [(c.kind, c.axes, c.bytes, c.times) for c in found] == [
    ("all-gather", ("data",), 256, 6),
    ("all-reduce", ("tensor",), 8 + 6, 3),
    ("reduce-scatter", ("data", "fsdp"), 4 * 40, 1),
    ("all-reduce", ("data",), 28, 1),
    ("collective-permute", ("tensor",), 20, 1),
    ("all-gather", ("fsdp", "tensor"), 32, 1),
  ]
  sums = hlo.totals(found)
  assert sums["all-gather", "data"] == 6 * 256
  assert sums["all-reduce", "tensor"] == 3 * 14


def test_an_unknown_notation_is_told():
  line = "  %r = f32[1]{0} all-reduce(%a), replica_groups=new"
  with pytest.raises(ValueError, match="No replica groups"):
    hlo.collectives(f"\nENTRY %m (a: f32[]) -> f32[] {{\n{line}\n}}", _MESH)


@pytest.fixture(scope="module")
def compiled():
  """Five products in a loop, each with weights gathered over two devices."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh(
    (2, 2), ("data", "fsdp"), axis_types=auto, devices=jax.devices()[:4]
  )
  wait = jax.lax.with_sharding_constraint
  lies = [NamedSharding(mesh, s) for s in (P("data"), P(None, "fsdp"))]

  def layer(x, w):
    w = wait(w, NamedSharding(mesh, P()))
    return wait(jnp.tanh(x @ w), lies[0]), None

  def apply(x, w):
    return jax.lax.scan(layer, x, w)[0]

  x, w = np.zeros((8, 16), np.float32), np.zeros((5, 16, 16), np.float32)
  jitted = jax.jit(apply, in_shardings=lies, out_shardings=lies[0])
  return jitted.lower(x, w).compile().as_text()


def test_bodies_of_loops_count_as_often_as_they_run(compiled):
  (found,) = hlo.collectives(compiled, {"data": 2, "fsdp": 2})
  assert found == ("all-gather", ("fsdp",), 4 * 16 * 16, 5)


def test_products_are_counted_in_loops(compiled):
  assert hlo.product_flops(compiled) == 5 * 2 * 4 * 16 * 16
