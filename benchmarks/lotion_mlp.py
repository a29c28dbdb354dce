"""Four-bit weights of a small classifier, by every method and curvature.

    python -m benchmarks.lotion_mlp [--steps=2500] [--seeds=2] [--only=REGEX]

A 32-64-64-10 ReLU network learns labels drawn from a teacher of the same shape
on fresh normal inputs: batches of 128, Adam at 3e-3 (0.9, 0.99) or SOAP,
cosine to zero. Kernels are INT4 with one scale each; biases stay. The table has
the loss on 8192 points of the weights as they are, rounded to nearest, and
rounded at random (mean of 16), all averaged over seeds, and the teacher's loss
on top: what is left is what the method costs.
"""

import argparse
import functools
import re
import time

import jax
import jax.numpy as jnp
import optax

import optim

SIZES, BATCH, POINTS, DRAWS = (32, 64, 64, 10), 128, 8192, 16
INT4 = optim.Quantizer(optim.INT4)
RATE = 3e-3


def init_params(key):
  """He-normal kernels, zero biases."""
  keys = jax.random.split(key, len(SIZES) - 1)
  return [
    dict(
      kernel=jax.random.normal(k, (i, o)) * (2 / i) ** 0.5, bias=jnp.zeros(o)
    )
    for k, i, o in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
  ]


def quantizers(params):
  """INT4 for kernels, nothing for biases."""
  return [dict(kernel=INT4, bias=None) for _ in params]


def logits_fn(params, x_BI):
  """The network."""
  for layer in params[:-1]:
    x_BI = jax.nn.relu(x_BI @ layer["kernel"] + layer["bias"])
  return x_BI @ params[-1]["kernel"] + params[-1]["bias"]


def cross_entropy(params, batch):
  """Mean over the batch."""
  x_BI, label_B = batch
  return jnp.mean(
    optax.softmax_cross_entropy_with_integer_labels(
      logits_fn(params, x_BI), label_B
    )
  )


def draw_batch(teacher, key, size):
  """Inputs, and labels drawn from the teacher."""
  input_key, label_key = jax.random.split(key)
  x_BI = jax.random.normal(input_key, (size, SIZES[0]))
  return x_BI, jax.random.categorical(label_key, logits_fn(teacher, x_BI))


def make_teacher(seed, scale=6.0):
  """A network whose last layer is scaled up, so that labels are clear."""
  teacher = init_params(jax.random.key(1000 + seed))
  last = jax.tree.map(lambda x: scale * x, teacher[-1])
  return [*teacher[:-1], last]


def methods(steps):
  """{name: (transform, options of `train`)}."""
  rate = optax.cosine_decay_schedule(RATE, steps)
  adam = optax.adam(rate, 0.9, 0.99)
  soap_options = dict(b1=0.9, b2=0.99, weight_decay=0.0)

  def lotion(strength, **options):
    return optim.lotion_adamw(
      rate, quantizers, strength, b2=0.99, weight_decay=0.0, **options
    )

  def lotion_soap(strength):
    curvature = functools.partial(optim.factor_diagonal, decay=0.99)
    return optim.with_rounding_penalty(
      optim.soap(rate, **soap_options), quantizers, strength, curvature
    )

  rounded = {
    "PTQ": {},
    "QAT": dict(forward="nearest"),
    "QAT-s": dict(forward="nearest", scale_gradient=True),
    "RAT": dict(forward="random"),
    "RAT-s": dict(forward="random", scale_gradient=True),
  }
  table = {name: (adam, options) for name, options in rounded.items()}
  for strength in (1, 10, 30, 100, 200):
    table[f"LOTION, squares, {strength}"] = lotion(strength), {}
  for strength in (30, 100):
    table[f"LOTION, squares, s fixed, {strength}"] = (
      lotion(strength, scale_gradient=False), {}
    )  # fmt: skip
  for strength in (1, 2):
    table[f"LOTION, drawn labels, {strength}"] = (
      lotion(strength), dict(fisher=True)
    )  # fmt: skip
  soap = optim.soap(rate, **soap_options)
  for name in ("PTQ", "QAT-s", "RAT-s"):
    table[f"{name}, SOAP"] = soap, rounded[name]
  squares = optim.add_rounding_penalty(quantizers, 100)
  table["LOTION, squares, 100, SOAP"] = optax.chain(squares, soap), {}
  for strength in (30, 100):
    table[f"LOTION, SOAP's factors, {strength}"] = lotion_soap(strength), {}
  return table


@functools.partial(
  jax.jit,
  static_argnames=("tx", "steps", "forward", "scale_gradient", "fisher"),
)
def train(
  teacher, key, *, tx, steps, forward=None, scale_gradient=False, fisher=False
):
  """The parameters after all steps."""

  def loss_fn(params, batch, key):
    if forward:
      params = optim.quantize_params(
        params,
        quantizers,
        key=key if forward == "random" else None,
        scale_gradient=scale_gradient,
      )
    return cross_entropy(params, batch)

  def step(carry, t):
    params, state = carry
    batch_key, round_key = jax.random.split(jax.random.fold_in(key, t))
    batch = draw_batch(teacher, batch_key, BATCH)
    grads = jax.grad(loss_fn)(params, batch, round_key)
    extra = {}
    if fisher:
      extra["curvature"] = optim.sampled_fisher_diagonal(
        logits_fn, params, batch[0], round_key, chunk_size=BATCH
      )
    updates, state = tx.update(grads, state, params, **extra)
    return (optax.apply_updates(params, updates), state), None

  params = init_params(key)
  carry, _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
  return carry[0]


@jax.jit
def evaluate(teacher, params, key):
  """Losses: teacher's, as they are, to nearest, at random, and mean s."""
  batch_key, draw_key = jax.random.split(key)
  batch = draw_batch(teacher, batch_key, POINTS)
  nearest = optim.quantize_params(params, quantizers)
  smoothed = optim.smoothed_loss(cross_entropy, quantizers, num_draws=DRAWS)
  return jnp.stack(
    [
      cross_entropy(teacher, batch),
      cross_entropy(params, batch),
      cross_entropy(nearest, batch),
      smoothed(params, draw_key, batch),
      optim.mean_step_size(params, quantizers),
      optim.on_grid_share(params, quantizers),
    ]
  )


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=2500)
  parser.add_argument("--seeds", type=int, default=2)
  parser.add_argument("--only", default="", help="Regular expression.")
  args = parser.parse_args()
  print(f"{args.steps} steps, {args.seeds} seeds; cross-entropy in nats")
  columns = ("weights", "nearest", "random", "mean s", "on grid")
  print(f"{'method':<34}" + "".join(f"{c:>9}" for c in columns), flush=True)
  for name, (tx, options) in methods(args.steps).items():
    if not re.search(args.only, name):
      continue
    start, values = time.perf_counter(), []
    for seed in range(args.seeds):
      teacher, key = make_teacher(seed), jax.random.key(seed)
      params = train(teacher, key, tx=tx, steps=args.steps, **options)
      values.append(evaluate(teacher, params, jax.random.key(77)))
    floor, *mean = jnp.mean(jnp.stack(values), axis=0).tolist()
    seconds = time.perf_counter() - start
    cells = "".join(f"{x:>9.4f}" for x in mean)
    print(f"{name:<34}{cells}   ({seconds:.0f} s)", flush=True)
  print(f"teacher {floor:.4f}")


if __name__ == "__main__":
  main()
