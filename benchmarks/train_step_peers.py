"""The peers of `train_step.py`: the same decoder in plain Flax and in PyTorch.

Both are written the way tutorials and small public trainers write them:
learned positions, pre-LayerNorm without bias, tied embedding, tanh GELU,
AdamW with decay on matrices, clipping at norm 1. They start from our weights
and see our tokens, so their losses have to agree with ours.
"""

# Of optax.adamw and torch.optim.AdamW alike, and of our configuration.
LEARNING_RATE, B1, B2, EPS, DECAY, CLIP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0


def flax_step(size, weights):
  """(step, state) of a plain Flax and optax step: `step(state, rows)`."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      heads, width = size["H"], size["D"] // size["H"]

      def norm(name):
        return nn.LayerNorm(epsilon=1e-5, use_bias=False, name=name)

      def project(name):
        return nn.DenseGeneral((heads, width), use_bias=False, name=name)

      h = norm("norm1")(x)
      q, k, v = (project(name)(h) for name in "qkv")
      scores = jnp.einsum("blhk,bmhk->bhlm", q / width**0.5, k)
      mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
      scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
      out = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores), v)
      x += nn.DenseGeneral(
        x.shape[-1], axis=(-2, -1), use_bias=False, name="out"
      )(out)
      h = nn.Dense(size["F"], use_bias=False, name="mlp_in")(norm("norm2")(x))
      return x + nn.Dense(x.shape[-1], use_bias=False, name="mlp_out")(
        nn.gelu(h)
      )

  class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(size["V"], size["D"], name="embed")
      positions = nn.Embed(size["L"], size["D"], name="positions")
      x = embed(tokens) + positions(jnp.arange(tokens.shape[1]))
      for i in range(size["N"]):
        x = Block(name=f"block{i}")(x)
      x = nn.LayerNorm(epsilon=1e-5, use_bias=False, name="final_norm")(x)
      return embed.attend(x)

  model = Model()

  def loss_fn(params, rows):
    logits = model.apply({"params": params}, rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, rows[:, 1:]
    )
    return jnp.mean(losses)

  params = _flax_params(weights)
  decays = jax.tree.map(lambda x: x.ndim > 1, params)
  tx = optax.chain(
    optax.clip_by_global_norm(CLIP),
    optax.adamw(LEARNING_RATE, B1, B2, EPS, weight_decay=DECAY, mask=decays),
  )

  def step(state, rows):
    params, opt_state = state
    loss, grads = jax.value_and_grad(loss_fn)(params, rows)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  params = jax.tree.map(jnp.asarray, params)
  return jax.jit(step, donate_argnums=0), (params, tx.init(params))


def _flax_params(weights):
  """Our parameters under the names that the plain module gives them."""
  params = {
    "embed": {"embedding": weights["embed"]["table"]},
    "positions": {"embedding": weights["positions"]["table"]},
    "final_norm": {"scale": weights["final_norm"]["gain"]},
  }
  for i, w in weights["blocks"].items():
    block = {n: {"scale": w[n]["gain"]} for n in ("norm1", "norm2")}
    block |= {n: {"kernel": w["attention"][n]} for n in ("q", "k", "v", "out")}
    block |= {f"mlp_{n}": {"kernel": w["mlp"][n]} for n in ("in", "out")}
    params[f"block{i}"] = block
  return params


def torch_step(size, weights, *, compiled, dtype):
  """step(rows) -> loss of a nanoGPT-shaped step in PyTorch.

  Args:
    size: Of the model.
    weights: Ours, as NumPy arrays, unrolled.
    compiled: Whether the model goes through `torch.compile`.
    dtype: float32 | bfloat16 (autocast).
  """
  import torch

  model = _torch_model(size)
  _load_torch(model, weights)
  matrices = [p for p in model.parameters() if p.ndim > 1]
  vectors = [p for p in model.parameters() if p.ndim == 1]
  optimizer = torch.optim.AdamW(
    [
      {"params": matrices, "weight_decay": DECAY},
      {"params": vectors, "weight_decay": 0.0},
    ],
    lr=LEARNING_RATE,
    betas=(B1, B2),
    eps=EPS,
    fused=True,
  )
  forward = torch.compile(model) if compiled else model

  def step(rows):
    with torch.autocast(
      "cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"
    ):
      loss = forward(torch.from_numpy(rows))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())

  return step


def _torch_model(size):
  """The decoder; called with rows [B, L + 1], it returns their mean loss."""
  from torch import nn
  from torch.nn import functional as F

  d, heads = size["D"], size["H"]

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1 = nn.LayerNorm(d, eps=1e-5, bias=False)
      self.norm2 = nn.LayerNorm(d, eps=1e-5, bias=False)
      self.qkv = nn.Linear(d, 3 * d, bias=False)
      self.out = nn.Linear(d, d, bias=False)
      self.mlp_in = nn.Linear(d, size["F"], bias=False)
      self.mlp_out = nn.Linear(size["F"], d, bias=False)

    def forward(self, x):
      b, l, _ = x.shape
      q, k, v = (
        y.view(b, l, heads, d // heads).transpose(1, 2)
        for y in self.qkv(self.norm1(x)).split(d, dim=2)
      )
      y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(b, l, d))
      h = F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh")
      return x + self.mlp_out(h)

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(size["V"], d)
      self.positions = nn.Embedding(size["L"], d)
      self.blocks = nn.ModuleList([Block() for _ in range(size["N"])])
      self.final_norm = nn.LayerNorm(d, eps=1e-5, bias=False)

    def forward(self, rows):
      tokens, targets = rows[:, :-1], rows[:, 1:]
      x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
      for block in self.blocks:
        x = block(x)
      logits = F.linear(self.final_norm(x), self.embed.weight)
      return F.cross_entropy(
        logits.float().reshape(-1, size["V"]), targets.reshape(-1).long()
      )

  return Model()


def _load_torch(model, weights):
  import numpy as np
  import torch

  d = weights["embed"]["table"].shape[1]

  def put(parameter, value):
    with torch.no_grad():
      parameter.copy_(torch.from_numpy(np.array(value)))

  put(model.embed.weight, weights["embed"]["table"])
  put(model.positions.weight, weights["positions"]["table"])
  put(model.final_norm.weight, weights["final_norm"]["gain"])
  for i, block in enumerate(model.blocks):
    w = weights["blocks"][str(i)]
    qkv = [w["attention"][n].reshape(d, -1).T for n in ("q", "k", "v")]
    put(block.qkv.weight, np.concatenate(qkv))
    put(block.out.weight, w["attention"]["out"].reshape(-1, d).T)
    put(block.mlp_in.weight, w["mlp"]["in"].T)
    put(block.mlp_out.weight, w["mlp"]["out"].T)
    put(block.norm1.weight, w["norm1"]["gain"])
    put(block.norm2.weight, w["norm2"]["gain"])
