r"""Squared norms of gradients of two batch sizes, for the noise of gradients.

With g_m the mean gradient over a microbatch of m rows, and g over the B rows of
an update,

    |G|^2 = (B |g|^2 - m |g_m|^2) / (B - m)
    tr S = (|g_m|^2 - |g|^2) / (1 / m - 1 / B)

are unbiased for the squared norm of the true gradient and the trace of the
covariance of a row's gradient. Take means over updates before the ratio.

References:
  McCandlish et al., "An Empirical Model of Large-Batch Training", 2018,
  https://arxiv.org/abs/1812.06162, appendix A.1.
"""

from collections.abc import Iterator

from ..config import ramp
from ..config.schema import Config
from ..step.update import Context, Metrics


def measure(context: Context) -> Metrics:
  """`train/micro_grad_sq`: mean of |g_m|^2; |g| is `train/grad_norm`."""
  return {"train/micro_grad_sq": context.micro_grad_sq}


def problems(config: Config) -> Iterator[str]:
  """A batch of one microbatch has no second size."""
  most = max(phase.rows for phase in ramp.of_config(config))
  if config.microbatch_size == most:
    yield (
      "config.log.probes.noise_scale compares microbatches with the batch, but "
      f"config.train.microbatch_size={config.train.microbatch_size} makes one "
      f"of all {most} rows; e.g. "
      f"--config.train.microbatch_size={max(1, most // 2)}."
    )
