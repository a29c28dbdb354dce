"""Quantised trees: which leaves, which keys, metrics, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

INT4 = optim.Quantizer(optim.INT4)


def _quantizer(name, *args, **kwargs):
  return optim.Quantizer(getattr(optim, name), *args, **kwargs)


# --- Helpers of evaluation ---------------------------------------------------


def test_step_size_and_grid_share_of_trees():
  params = dict(
    a=jnp.asarray([14.0, 4.0, 5.0, 6.05]), b=jnp.asarray([7.0, 7.0]),
    c=jnp.ones(100),
  )  # fmt: skip
  mask = dict(a=True, b=True, c=False)
  mean = optim.mean_step_size(params, INT4, mask=mask)
  np.testing.assert_allclose(mean, (4 * 2 + 2 * 1) / 6, rtol=1e-6)
  share = optim.on_grid_share(params, INT4, mask=mask)
  np.testing.assert_allclose(share, 5 / 6, rtol=1e-6)
  strict = optim.on_grid_share(params, INT4, mask=mask, tolerance=0.01)
  np.testing.assert_allclose(strict, 4 / 6, rtol=1e-6)
  # Gaps of E2M1 differ: 5.1 is at 0.55 of the gap from 4 to 6.
  e2m1 = _quantizer("E2M1")
  w = jnp.asarray([6.0, 5.1, 3.95, 0.49])
  np.testing.assert_allclose(optim.on_grid_share(w, e2m1), 3 / 4)


def test_keys_of_leaves_and_draws():
  params = dict(a=jnp.linspace(-1, 1, 500), b=jnp.linspace(-1, 1, 500))
  rounded = jax.jit(lambda key: optim.quantize_params(params, INT4, key=key))
  first, again, other = (rounded(jax.random.key(i)) for i in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  s = 1 / 7
  up = {k: np.asarray(v) > np.asarray(params[k]) for k, v in first.items()}
  for a, b in ((up["a"], up["b"]), (up["a"], other["a"] > params["a"])):
    # Independent draws of chance d agree with probability d^2 + (1 - d)^2.
    d = np.asarray(params["a"]) / s
    d = d - np.floor(d)
    agree = np.mean(d**2 + (1 - d) ** 2)
    assert abs(np.mean(a == np.asarray(b)) - agree) < 0.1
  # A leaf's draw is its own, whatever else is in the tree.
  alone = optim.quantize_params(dict(b=params["b"]), INT4,
                                key=jax.random.key(0))  # fmt: skip
  np.testing.assert_array_equal(alone["b"], first["b"])


def test_quantize_params_keeps_types_and_passes_gradients():
  params = dict(a=jnp.asarray([1.0, 0.3], jnp.bfloat16), b=jnp.ones(2))
  rounded = optim.quantize_params(params, INT4)
  assert jax.tree.map(jnp.dtype, rounded) == jax.tree.map(jnp.dtype, params)
  grad = jax.grad(lambda p: jnp.sum(optim.quantize_params(p, INT4)["b"] ** 2))(
    params
  )
  np.testing.assert_array_equal(grad["b"], [2, 2])


def test_leaves_that_optax_masked_took_out():
  params = dict(a=jnp.asarray([7.0, 2.4]), b=jnp.asarray([7.0, 2.4]))
  tx = optax.masked(
    optim.add_rounding_penalty(INT4, 1.0), dict(a=True, b=False)
  )
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(ones, tx.init(params), params, curvature=ones)
  assert np.any(updates["a"] != 1)
  np.testing.assert_array_equal(updates["b"], 1)
  masked = dict(params, b=optax.MaskedNode())
  rounded = optim.quantize_params(masked, INT4)
  np.testing.assert_array_equal(rounded["a"], [7, 2])
  assert isinstance(rounded["b"], optax.MaskedNode)
  # A biased rule does no harm where the mask leaves it out.
  both = dict(a=INT4, b=FLOOR)
  mask = dict(a=True, b=False)
  optim.add_rounding_penalty(both, 1.0, mask=mask).init(params)


# --- Bad input ---------------------------------------------------------------

FLOOR = optim.Quantizer(optim.E4M3, -1, 2, "pow2_floor")
NVFP4 = optim.Quantizer(optim.E2M1, -1, 2, "nvfp4")
ONES = dict(w=jnp.ones((3, 4)))


def _soap(quantizer, strength):
  return optim.with_rounding_penalty(
    optim.soap(1e-3), quantizer, strength, optim.factor_diagonal
  )


def _update_without_params(tx):
  return tx.update(ONES, tx.init(ONES))


def _update_with(curvature):
  tx = optim.add_rounding_penalty(INT4, 1.0)
  return tx.update(ONES, tx.init(ONES), ONES, curvature=curvature)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optim.add_rounding_penalty(INT4, -1.0), "strength=-1.0 must be"),
    (lambda: optim.lotion_adamw(1e-3, INT4, -2), "strength=-2 must be >= 0"),
    (lambda: _soap(INT4, -2), "strength=-2 must be >= 0"),
    (lambda: optim.add_rounding_penalty(INT4, np.inf), "strength=inf must be"),
    (lambda: optim.add_rounding_penalty(INT4, np.nan), "strength=nan must be"),
    (lambda: optim.add_rounding_penalty(INT4, "x"), "strength='x' must be"),
    (lambda: optim.add_rounding_penalty(INT4, None), "strength=None.*schedule"),
    (
      lambda: optim.add_rounding_penalty(INT4, jnp.ones(2)),
      r"strength=.*must be >= 0 and finite",
    ),
    (
      lambda: optim.add_rounding_penalty(INT4, 1.0, curvature_decay=1.0),
      "curvature_decay=1.0",
    ),
    (
      lambda: optim.add_rounding_penalty(lambda p: FLOOR, 1.0).init(ONES),
      r"scale='pow2_floor' of leaf \['w'\].*take scale='pow2_ceil'",
    ),
    (
      lambda: optim.add_rounding_penalty(dict(w=FLOOR), 1.0),
      r"scale='pow2_floor' of quantizer\['w'\].*take scale='pow2_ceil'",
    ),
    (
      lambda: optim.lotion_adamw(1e-3, FLOOR, 1.0, penalty_mask=dict(w=True)),
      "scale='pow2_floor' of quantizer saturates",
    ),
    (lambda: optim.lotion_adamw(1e-3, NVFP4, 1.0), "scale='nvfp4'"),
    (lambda: _soap(FLOOR, 1.0), "scale='pow2_floor'"),
    (
      lambda: optim.smoothed_loss(jnp.sum, FLOOR, num_draws=2),
      "rounding at random is biased",
    ),
    (
      lambda: optim.add_rounding_penalty("int4", 1.0),
      "quantizer='int4' must be an optim.Quantizer",
    ),
    (
      lambda: optim.rounding_penalty(ONES, ONES, FLOOR),
      "rounding at random is biased",
    ),
    (
      lambda: optim.quantize_params(ONES, FLOOR, key=jax.random.key(0)),
      "rounding at random is biased",
    ),
    (
      lambda: optim.quantize_params(ONES, _quantizer("INT4", -1, 3)),
      r"block_size=3 does not divide axis -1 of leaf \['w'\].*\[2, 4\]",
    ),
    (
      lambda: optim.lotion_adamw(1, _quantizer("INT4", 2), 1).init(ONES),
      r"axis=2 but leaf \['w'\] has shape \(3, 4\)",
    ),
    (
      lambda: optim.quantize_params(ONES, _quantizer("INT4", batch_axes=3)),
      r"batch_axes=3 but leaf \['w'\]",
    ),
    (
      lambda: optim.quantize_params(dict(n=jnp.arange(3)), INT4),
      r"\['n'\].*int32",
    ),
    (lambda: optim.quantize_params(ONES, "INT4"), "must be an optim.Quantizer"),
    (lambda: optim.quantize_params(ONES, {}), r"no entry for leaf \['w'\]"),
    (lambda: optim.quantize_params(ONES, INT4, mask=dict(v=True)),
     r"mask has no entry for leaf \['w'\]"),
    (
      lambda: optim.quantize_params(ONES, INT4, mask="w"),
      "mask='w' must be True or False",
    ),
    (
      lambda: optim.quantize_params(dict(w=1.0), INT4),
      r"Leaf \['w'\]=1.0 must be an array",
    ),
    (lambda: optim.rounding_penalty(ONES, {}, INT4), r"curvature has no leaf"),
    (
      lambda: optim.rounding_penalty(ONES, dict(w=jnp.ones(4)), INT4),
      r"curvature\['w'\] has shape \(4,\) but the parameter \(3, 4\)",
    ),
    (lambda: _update_with(dict(w=jnp.ones(4))), r"\['w'\] has shape \(4,\)"),
    (lambda: _update_with(dict(w=1.0)), r"curvature\['w'\] has shape \(\)"),
    (
      lambda: _update_with(dict(zzz=jnp.ones(4))),
      r"curvature has a leaf \['zzz'\].*leaves are \[.*\['w'\]",
    ),
    (
      lambda: optim.with_rounding_penalty(
        optax.sgd(1.0), INT4, 1.0, lambda state, params: jnp.ones(3)
      ).init(ONES),
      "curvature has a leaf",
    ),
    (
      lambda: _update_without_params(optim.add_rounding_penalty(INT4, 1.0)),
      r"params=None.*tx.update\(grads, opt_state, params\)",
    ),
    (
      lambda: _update_without_params(_soap(INT4, 1.0)),
      "params=None",
    ),
    (
      lambda: optim.smoothed_loss(jnp.sum, INT4, num_draws=0),
      "num_draws=0 must be an int >= 1",
    ),
    (
      lambda: optim.smoothed_loss(jnp.sum, INT4, num_draws=2.5),
      "num_draws=2.5 must be an int",
    ),
  ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
