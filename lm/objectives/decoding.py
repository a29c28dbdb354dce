r"""Continuations of rows of tokens, drawn token by token.

The prompts are padded at the end and decoded together, into a cache of fixed
size. Then a scan adds one token at a time to all rows. A row that has reached
the end of its document gets padding.

Dimension key: B rows, T tokens of the longest prompt, S new tokens, V
vocabulary, 1 as in B1: one position.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ..model.cache import init_cache
from ..model.transformer import Transformer


class Sampling(NamedTuple):
  """How the next token is drawn; the restrictions act one after the other."""

  temperature: float = 1.0  # Divides the logits; 0 takes the most likely.
  top_k: int = 0  # Only the k most likely; 0: all.
  # Only the fewest that have this probability together, after the other two.
  top_p: float = 1.0


def generate(
  model: Transformer,
  params: Any,
  prompts: Sequence[Sequence[int]],
  num_tokens: int,
  key: jax.Array,
  sampling: Sampling = Sampling(),  # noqa: B008
) -> np.ndarray:
  """Draws a continuation of each prompt.

  Row b depends on its prompt, the key and b, not on the other rows.

  Args:
    model: The Flax module.
    params: Its parameters.
    prompts: Token ids; a text from its beginning starts with `eos_id`.
    num_tokens: S, tokens to add to each.
    key: Of the draws.
    sampling: How each token is drawn.

  Returns:
    int32 [B, S]; after the first `eos_id` of a row all are `pad_id`.

  Raises:
    ValueError: If a prompt is empty, a setting is out of range, or the text
      would outgrow a table of learned positions.
  """
  _check(model, prompts, num_tokens, sampling)
  length_B = np.array([len(prompt) for prompt in prompts], np.int32)
  shape = (len(prompts), int(length_B.max()))
  prompt_BT = np.full(shape, model.cfg.pad_id, np.int32)
  for row, prompt in zip(prompt_BT, prompts, strict=True):
    row[: len(prompt)] = prompt
  tokens_BS = _generate(
    model, params, prompt_BT, length_B, key, num_tokens, sampling
  )
  return np.asarray(tokens_BS)


def sample(
  logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> jax.Array:
  """Draws a token of each row.

  Args:
    logits_BV: float32; -inf for tokens that cannot come.
    keys_B: A key a row.
    sampling: How.

  Returns:
    int32 [B].
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = restrict(logits_BV / sampling.temperature, sampling)
  draw = jax.vmap(jax.random.categorical)
  return draw(keys_B, logits_BV).astype(jnp.int32)


def restrict(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Sets the logits that top_k and top_p exclude to -inf.

  Tokens as likely as the last one kept are kept too.

  Args:
    logits_BV: Already divided by the temperature.
    sampling: Its `top_k` and `top_p` are used.

  Returns:
    Logits [B, V].
  """
  if 0 < sampling.top_k < logits_BV.shape[-1]:
    kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
  if sampling.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = before_BV < sampling.top_p  # The likeliest always is.
    lowest_B1 = jnp.min(
      jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    logits_BV = jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
  return logits_BV


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _generate(
  model: Transformer,
  params: Any,
  prompt_BT: jax.Array,
  length_B: jax.Array,
  key: jax.Array,
  num_tokens: int,
  sampling: Sampling,
) -> jax.Array:
  cfg = model.cfg
  b, t = prompt_BT.shape
  row_keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(
    jnp.arange(b)
  )

  def decode(tokens, cache) -> tuple[jax.Array, Any]:
    variables = {"params": params}
    return model.apply(variables, tokens, cache, method="decode")

  def draw(logits_BV, step, done_B):
    logits_BV = logits_BV.at[:, cfg.pad_id].set(-jnp.inf)
    keys_B = jax.vmap(lambda k: jax.random.fold_in(k, step))(row_keys_B)
    token_B = sample(logits_BV, keys_B, sampling)
    token_B = jnp.where(done_B, cfg.pad_id, token_B)
    return token_B, done_B | (token_B == cfg.eos_id)

  def step(carry, i):
    token_B, done_B, cache = carry
    logits_B1V, cache = decode(token_B[:, None], cache)
    token_B, done_B = draw(logits_B1V[:, 0], i, done_B)
    return (token_B, done_B, cache), token_B

  logits_BTV, cache = decode(prompt_BT, init_cache(cfg, b, t + num_tokens))
  cache = cache._replace(length_B=length_B)
  last_B1V = jnp.take_along_axis(
    logits_BTV, length_B[:, None, None] - 1, axis=1
  )
  first_B, done_B = draw(last_B1V[:, 0], 0, jnp.zeros(b, bool))
  _, rest_SB = jax.lax.scan(
    step, (first_B, done_B, cache), jnp.arange(1, num_tokens)
  )
  tokens_BS = jnp.concatenate([first_B[None], rest_SB]).T
  if not jax.sharding.get_abstract_mesh().empty:
    # So that every process can read them.
    return jax.lax.with_sharding_constraint(tokens_BS, PartitionSpec())
  return tokens_BS


def _check(
  model: Transformer,
  prompts: Sequence[Sequence[int]],
  num_tokens: int,
  sampling: Sampling,
) -> None:
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError(
      "Every prompt needs a token; a text from its beginning is [eos_id]."
    )
  if num_tokens < 1:
    raise ValueError(f"num_tokens={num_tokens} must be at least 1.")
  if sampling.temperature < 0:
    raise ValueError(
      f"temperature={sampling.temperature} must be at least 0 (0: always the "
      "most likely token)."
    )
  if sampling.top_k < 0:
    raise ValueError(f"top_k={sampling.top_k} must be at least 0 (0: all).")
  if not 0 < sampling.top_p <= 1:
    raise ValueError(f"top_p={sampling.top_p} must be in (0, 1].")
  longest = max(len(prompt) for prompt in prompts) + num_tokens
  if model.cfg.positions == "learned" and longest > model.cfg.L:
    raise ValueError(
      f"Prompt and new tokens are {longest} together, but the model learned "
      f"positions for {model.cfg.L} (config.data.seq_length); ask for fewer."
    )
