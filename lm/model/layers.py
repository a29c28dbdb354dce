"""The transformer's mathematics as plain functions of arrays.

Dimension key: see `transformer.py`. Norms and softmax run in float32 whatever
the dtype of their inputs; products run in the dtype of the activations.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def standardize(
  x: jax.Array, axes: tuple[int, ...], eps: float, centre: bool
) -> jax.Array:
  """(x - m) / sqrt(mean((x - m)^2) + eps), m the mean, or 0 without `centre`.

  With y the result and r = 1 / sqrt(...), a tangent t gives

      y' = r (t - mean(t) - y mean(y t))     (no mean(t) without `centre`),

  a symmetric map, whose transpose costs the same two reductions. The rule is a
  `custom_jvp`, not a `custom_vjp`, so that forward mode works too. The reverse
  mode that JAX derives by itself is slower.

  Args:
    x: float32.
    axes: Reduced axes, counted from the end.
    eps: Added to the mean square.
    centre: Whether to subtract the mean.
  """
  return _standardize(x, axes, eps, centre)[0]


def _standardize(x, axes, eps, centre):
  if centre:
    x = x - jnp.mean(x, axes, keepdims=True)
  scale = jax.lax.rsqrt(jnp.mean(x * x, axes, keepdims=True) + eps)
  return x * scale, scale


@standardize.defjvp
def _standardize_jvp(axes, eps, centre, primals, tangents):
  (x,), (t,) = primals, tangents
  # Called by its name, so that the reverse mode of a forward pass with
  # tangents, as in Gauss-Newton, uses this rule again.
  y = standardize(x, axes, eps, centre)
  _, scale = _standardize(x, axes, eps, centre)
  t = t * scale
  slope = t - y * jnp.mean(y * t, axes, keepdims=True)
  if centre:
    slope = slope - jnp.mean(t, axes, keepdims=True)
  return y, slope


def norm(
  x: jax.Array,
  gain: jax.Array,
  bias: jax.Array | None = None,
  *,
  kind: str,
  eps: float,
) -> jax.Array:
  """LayerNorm or RMSNorm over the axes of `gain`, the last ones of `x`.

  Args:
    x: Any dtype; the result has the same.
    gain: Multiplies the standardised values.
    bias: Added afterwards, or None.
    kind: layernorm (subtracts the mean) | rmsnorm.
    eps: Added to the mean square.
  """
  axes = tuple(range(-gain.ndim, 0))
  y = standardize(x.astype(jnp.float32), axes, eps, kind == "layernorm")
  y = y * gain
  return (y if bias is None else y + bias).astype(x.dtype)


def rope_angles(
  positions_BL: jax.Array, num_channels: int, base: float, layout: str
) -> tuple[jax.Array, jax.Array]:
  """Cosine and signed sine for each channel, [B, L, 1, K] each.

  Pair i turns by p base^(-2 i / K) at position p. The sine of its first channel
  is negated. The angles are made once for all layers: inside a layer XLA would
  compute them for each head.

  Args:
    positions_BL: p, integers.
    num_channels: K, of a head.
    base: Of the wavelengths.
    layout: As in `rope`.
  """
  i = jnp.arange(0, num_channels, 2, dtype=jnp.float32)
  frequencies = base ** (-i / num_channels)
  angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if layout == "half":
    return (
      jnp.concatenate([cos, cos], axis=-1),
      jnp.concatenate([-sin, sin], axis=-1),
    )
  shape = (*angles.shape[:-1], num_channels)
  return (
    jnp.stack([cos, cos], axis=-1).reshape(shape),
    jnp.stack([-sin, sin], axis=-1).reshape(shape),
  )


def rope(
  x_BLHK: jax.Array, angles: tuple[jax.Array, jax.Array], layout: str
) -> jax.Array:
  """Rotates channel pairs of each head by angles proportional to position.

  The score of a query and a key then depends on the difference of their
  positions only. (a, b) becomes (a cos - b sin, b cos + a sin), computed as
  each channel with its partner. XLA runs the concatenation of two halves
  slower.

  Args:
    x_BLHK: Queries or keys.
    angles: From `rope_angles`.
    layout: half (channel i pairs with i + K / 2) | interleaved (2 i, 2 i + 1).

  References:
    Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864, eq. 34.
  """
  cos, signed_sin = angles
  x = x_BLHK.astype(jnp.float32)
  k = x.shape[-1]
  if layout == "half":
    partner = jnp.roll(x, k // 2, axis=-1)
  else:
    pairs = x.reshape(*x.shape[:-1], k // 2, 2)
    partner = jnp.flip(pairs, axis=-1).reshape(x.shape)
  return (x * cos + partner * signed_sin).astype(x_BLHK.dtype)


def alibi_slopes(num_heads: int) -> jax.Array:
  """Slopes m_h = 2^(-8 h / H), h = 1, ..., H, of the penalty m_h |i - j|.

  References:
    Press et al., "ALiBi", 2021, https://arxiv.org/abs/2108.12409.
  """
  return 2.0 ** (-8.0 * jnp.arange(1, num_heads + 1) / num_heads)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """`cap` tanh(x / cap), or `x` where `cap` is 0."""
  return cap * jnp.tanh(x / cap) if cap else x
