# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is the continuum law good enough to choose a schedule?
#
# **Question.** The functional scaling law replaces SGD by an integral equation
# in intrinsic time. How far is it from the exact risk, and which schedule is
# optimal when the exact risk is differentiated?
#
# **Sources.** Li et al., arXiv 2509.19189; arXiv 2602.06797.
#
# **Claim.** Close at small steps; easy tasks want power decay, hard tasks
# want warmup-stable-decay.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import optimize

import theory

plt.style.use("theory.mplstyle")

# %% [markdown]
# ## The law against the exact recursion and samples

# %%
small = theory.power_law(64, 1.5, 2.0, 1.0, nodes=None)
T, batch = 400, 4
fig, (left, right) = plt.subplots(1, 2)
errors, z = {}, 0.0
for k, share in enumerate((0.02, 0.1, 0.4)):
  eta = theory.wsd(share * theory.eta_max(small, batch), T, 0.2)
  schedule = theory.schedule(eta, batch)
  exact = theory.risk_scan(small, schedule).total
  law = theory.fsl_risk(small, schedule)
  errors[share] = np.abs(law / exact - 1).max()
  left.semilogy(exact, color=f"C{k}", label=f"exact, {share} eta_max")
  left.semilogy(law, ":", color="k", lw=1.2, label="FSL" if k == 2 else None)
  right.semilogy(
    np.abs(law / exact - 1) + 1e-9, color=f"C{k}", label=f"{share} eta_max"
  )
  if k == 1:
    sampled = theory.simulate(
      jax.random.key(0), small, theory.sgd(eta), batch, T, 2000
    )
    show = np.arange(0, T + 1, 40)
    left.errorbar(
      show,
      sampled.mean[show],
      2 * sampled.stderr[show],
      fmt="k.",
      ms=4,
      label="sampled, 2 s.e.",
    )
    z = np.max(np.abs(sampled.mean - exact)[1:] / sampled.stderr[1:])
left.set(
  xlabel="updates",
  ylabel="excess risk",
  title="warmup-stable-decay, d = 64, B = 4",
)
left.legend()
right.set(
  xlabel="updates",
  ylabel="relative error of the FSL",
  title="error grows with the step",
  ylim=(1e-5, 1),
)
right.legend()
plt.show()

# %% [markdown]
# **Figure.** Left: excess risk against updates for three step sizes. The
# functional scaling law (dotted) covers the exact curve at 0.02 and 0.1 eta_max
# and runs visibly below it at 0.4; the sampled means lie on the exact curve of
# 0.1. Right: the relative error of the law. It stays below 0.01 at the smallest
# step and is about 0.2 at the largest until the decay.

# %% [markdown]
# ## The optimal schedule, by gradient through the exact recursion
#
# L-BFGS on 40 knots of a logit, capped at half of eta_max, batch 1.

# %%
T, KNOTS = 4096, 40
grid = np.linspace(0, T - 1, KNOTS)


def optimum(a, b):
  """The problem, the cap, the best step sizes below the cap, and their risk."""
  problem = theory.power_law(1e4, a, b, 1.0, nodes=5, head=16)
  cap = 0.5 * theory.eta_max(problem, 1)

  def eta_of(x, xp):
    return cap / (1 + xp.exp(-xp.interp(xp.arange(T), grid, x)))

  def log_risk(x):
    schedule = theory.Schedule(eta_of(x, jnp), jnp.ones(T))
    return jnp.log(theory.final_risk(problem, schedule).total)

  with theory.float64():
    pair = jax.jit(jax.value_and_grad(log_risk))
    found = optimize.minimize(
      lambda x: tuple(np.asarray(v, float) for v in pair(x)),
      np.linspace(0, -3, KNOTS),
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": 500},
    )
  return problem, cap, eta_of(found.x, np), np.exp(found.fun)


SHAPES = {
  "constant": lambda T: theory.constant(1.0, T),
  "linear": lambda T: theory.linear(1.0, T),
  "cosine": lambda T: theory.cosine(1.0, T),
  "(1-x)^2": lambda T: theory.power(1.0, T, 2),
  "wsd, 20 %": lambda T: theory.wsd(1.0, T, 0.2),
}
TASKS = {
  "easy: a = 1.5, b = 2.5": (1.5, 2.5),
  "hard: a = 2, b = 1.3": (2.0, 1.3),
}
fig, axes = plt.subplots(1, 2)
table = {}
for axis, (title, (a, b)) in zip(axes, TASKS.items(), strict=True):
  problem, cap, eta, best = optimum(a, b)
  axis.plot(np.arange(T) / T, eta / cap, "k", lw=2.2, label="optimum")
  for name, shape in SHAPES.items():
    ends = [
      (
        theory.final_risk(problem, theory.schedule(peak * shape(T), 1)).total,
        peak,
      )
      for peak in cap * np.logspace(-1.6, 0, 14)
    ]
    risk, peak = min(ends)
    table[title, name] = risk / best
    axis.plot(
      np.arange(T) / T,
      peak * shape(T) / cap,
      lw=1,
      label=f"{name}, {risk / best:.3f}x",
    )
  axis.set(xlabel="t / T", ylabel="step size / cap", title=title)
  axis.legend()
plt.show()

# %% [markdown]
# **Figure.** Step size over its cap against t / T, for the easy task (left) and
# the hard task (right): the optimum in black, five common shapes at their best
# peaks in colour, with their risks over the optimum's in the legend. On the
# easy task the optimum rises briefly to 0.15 of the cap and then decays all the
# way. On the hard task the optimum stays at the cap for three quarters of the
# run and then falls to zero.

# %%
easy, hard = TASKS
rows = [
  ("FSL largest error at .02 eta_max", "small", f"{100 * errors[0.02]:.1f} %"),
  ("FSL largest error at .4 eta_max", "large", f"{100 * errors[0.4]:.0f} %"),
  ("WSD / optimum, hard", "~ 1", f"{table[hard, 'wsd, 20 %']:.3f}"),
  ("WSD / optimum, easy", "worse", f"{table[easy, 'wsd, 20 %']:.3f}"),
  (
    "best decay to zero / optimum, easy",
    "~ 1",
    f"{min(table[easy, n] for n in ('linear', 'cosine', '(1-x)^2')):.3f}",
  ),
  ("(1-x)^2 / optimum, easy", "~ 1", f"{table[easy, '(1-x)^2']:.3f}"),
  ("largest |z| of the sampled runs", "< 4.5", f"{z:.1f}"),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<38}{paper:<10}{ours}")

# %% [markdown]
# ## What came out
#
# As the papers say: the continuum law is within 0.5 % of the exact risk at 0.02
# eta_max, and 21 % away at 0.4 eta_max. On the hard task warmup-stable-decay is
# within 1.011 of the optimum; on the easy task it is 1.209 times worse than the
# optimum, which decays throughout. The sampled runs agree (largest |z| 2.4).
#
# Not as the papers say: on the easy task the best of the common shapes is the
# linear decay (1.039) and not a higher power ((1-x)^2 has 1.061). The
# difference is small.
