r"""8.1B parameters in the OLMo style, for plans and the cost model.

    python -m lm.tools.plan --config=ml_collections_configs/olmo8b.py \
        --topology=v5p-128

Grouped queries, a gated feed-forward block and rematerialisation, as models of
this size have; rates and length are those of the 150M model, not tuned.
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.olmo(D=4096, N=36, H=32, F=14_336)
  c.model.G = 8
  c.model.mlp = "swiglu"
  c.model.remat = "full"
  c.optim.learning_rate = 3e-4
  c.mesh.data, c.mesh.fsdp = 1, -1
  c.eval.batch_size = 64
  return c
