"""What a token costs in arithmetic, and the share of the hardware that is used.

Only matrix products are counted, in closed form: two operations (multiply, add)
for each weight that a token meets. XLA's own count cannot be used for a scanned
model: it sees the body of a scan over layers once, whatever the length. The
parts of a layer say how many weights a token meets, and what else they compute
(`lm/model/ffn`, `lm/model/mixers`). For the default parts, with
K = D / H the head size and c the feed-forward matrices, 2, or 3 with a gate:

    weights = 2 (2 D^2 + 2 D G K + c D F)      projections and feed-forward
    beyond = 4 L D, or half of it              scores and weighted values
    head = 2 D V

Attention counts the causal half, a mean of L / 2 visible positions, even if the
kernel computes the full square and masks half of it. Document boundaries, which
hide more, are ignored. The embedding look-up is free.
"""

from ..config.schema import ModelConfig
from ..model.ffn import table as feed_forwards
from ..model.mixers import table as mixers
from .chips import peak_flops


def forward_flops_per_token(
  cfg: ModelConfig, *, causal_half: bool = True
) -> float:
  """FLOPs of one token's forward pass, N (weights + beyond) + head.

  Args:
    cfg: The model; L is the length of the rows.
    causal_half: Count only the visible half of the attention square.

  Returns:
    FLOPs per token.
  """
  return cfg.N * _block(cfg, causal_half) + _head(cfg)


def train_flops_per_token(
  cfg: ModelConfig,
  *,
  causal_half: bool = True,
  recompute: bool = False,
) -> float:
  """FLOPs of one token's training step: three times the forward pass.

  Each product is differentiated by both of its arguments, at the cost of two
  further products. The optimiser's work does not grow with the tokens and is
  left out.

  Args:
    cfg: The model.
    causal_half: As in `forward_flops_per_token`.
    recompute: Also count what the configuration computes again in the
      backward pass: every block with remat "full", what is beyond the
      weights with "dots", the head with a chunked loss. Without recomputation
      the count gives the utilisation by convention ("model FLOPs"), with
      recomputation the load of the hardware. The count is then an upper bound,
      since the compiler leaves some products out, e.g. the last one of a block.
      What a "names:" policy recomputes is not counted.

  Returns:
    FLOPs per token.
  """
  flops = 3 * forward_flops_per_token(cfg, causal_half=causal_half)
  if not recompute:
    return flops
  if cfg.remat == "full":
    flops += cfg.N * _block(cfg, causal_half)
  elif cfg.remat == "dots":  # Saves products without batch axes only.
    flops += cfg.N * _beyond(cfg, causal_half)
  if cfg.loss_chunk:
    flops += _head(cfg)
  return flops


def mfu(
  tokens_per_s: float,
  flops_per_token: float,
  num_devices: int,
  device_kind: str,
) -> float | None:
  """Model FLOPs utilisation: the achieved share of the bfloat16 peak.

  Args:
    tokens_per_s: Over all devices.
    flops_per_token: Of `train_flops_per_token`, without recomputation.
    num_devices: Over all processes.
    device_kind: Of each.

  Returns:
    A share of 1, or None where the peak is unknown (a CPU, a new device).

  References:
    Chowdhery et al., "PaLM", 2022, appendix B,
    https://arxiv.org/abs/2204.02311
  """
  peak = peak_flops(device_kind)
  if peak is None:
    return None
  return tokens_per_s * flops_per_token / (num_devices * peak)


def _block(cfg: ModelConfig, causal_half: bool) -> float:
  parts = (mixers.of(cfg), feed_forwards.of(cfg))
  return 2 * sum(p.weights(cfg)[1] for p in parts) + _beyond(cfg, causal_half)


def _beyond(cfg: ModelConfig, causal_half: bool) -> float:
  """What a layer computes without weights."""
  fed = feed_forwards.of(cfg).flops(cfg)
  return mixers.of(cfg).flops(cfg, causal_half) + fed


def _head(cfg: ModelConfig) -> float:
  return 2 * cfg.D * cfg.V
