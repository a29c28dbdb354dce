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
# # When does averaged SGD overfit benignly?
#
# **Question.** With many more directions than samples, which iterate should be
# kept, and how good are the published upper bounds?
#
# **Sources.** Zou et al., arXiv 2103.12692 (bound recalled, not its theorem
# number); Meterez et al., arXiv 2506.15535.
#
# **Claim.** Tail averaging removes the bias that uniform averaging keeps; the
# effective dimension, not d, sets the variance; bounds hold.
#
# **Two biases.** The signal alone (the mean run, or the full batch) leaves a
# bias whose exponent is -2 under uniform and -(b - 1)/a under tail averaging,
# if b > 2a + 1. The bias of SGD without label noise also holds the noise of the
# features: `theory.exponents(..., noise=False)` gives -(2 - 1/a) for b > 2a,
# whatever is averaged.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")
CASES = {"easy: a = 1.5, b = 5": (1.5, 5.0), "hard: a = 2, b = 1.5": (2.0, 1.5)}
TIMES = np.unique(np.round(np.logspace(1, 8, 29)))
HALF = np.ceil(TIMES / 2)

# %% [markdown]
# ## Last iterate, uniform average, tail average
#
# Batch 1, constant step 0.3 / (3 tr H), d = 1e9. Every point is exact. The
# signal alone is the same average at an infinite batch.

# %%
fig, axes = plt.subplots(1, 2, sharey=False)
records = {}
for axis, (title, (a, b)) in zip(axes, CASES.items(), strict=True):
  problem = theory.power_law(1e9, a, b, 1.0, nodes=6)
  eta = 0.3 / (3 * problem.lam @ problem.mult)
  last = theory.risk_at(problem, eta, 1, TIMES).total
  axis.loglog(TIMES, last, "C0", lw=1, label="last iterate")
  places = {"uniform": (0, TIMES), "tail": (TIMES - HALF, HALF)}
  curves = {}
  for k, (name, (first, count)) in enumerate(places.items(), 1):
    run = theory.tail_average_at(problem, eta, 1, first, count)
    signal = theory.tail_average_at(problem, eta, np.inf, first, count).bias
    axis.loglog(TIMES, run.total, color=f"C{k}", label=f"{name} average")
    axis.loglog(TIMES, run.bias, "--", color=f"C{k}", label="its bias")
    axis.loglog(TIMES, signal, ":", color=f"C{k}", label="signal alone")
    curves[name] = run, signal
  axis.set(
    xlabel="samples N", ylabel="excess risk", title=title, ylim=(1e-13, None)
  )
  records[title] = (problem, eta, curves)
axes[1].set_ylim(1e-4, None)
axes[1].legend(ncol=2, loc="lower left")
plt.show()

# %% [markdown]
# **Figure.** Excess risk against samples, log-log, for the easy problem (left)
# and the hard one (right). Left: the last iterate levels off; the two averages
# fall in parallel from 1e4 samples on and are nearly all variance. Their biases
# (dashed) first fall about as steeply as the signal alone (dotted), then bend
# and become parallel to each other, a factor of three apart. The signal alone
# goes on falling, faster under the tail average. Right: all curves but the last
# iterate are straight, parallel and close together.

# %% [markdown]
# ## The bounds beside the exact value
#
# The chi-bound replaces alpha tr H of the published form by the exact noise
# gain chi. Samples at small d show that the exact value is what SGD does.

# %%
problem, eta, curves = records["easy: a = 1.5, b = 5"]
exact = curves["tail"][0].total
zou = theory.zou_bound(problem, eta, TIMES - HALF, HALF).total
chi = theory.chi_bound(problem, eta, 1, TIMES - HALF, HALF).total

small = theory.power_law(64, 1.5, 5.0, 1.0, nodes=None)
T = 256
method = theory.averaged(
  theory.sgd(np.full(T, eta)), theory.theta_uniform(T, T // 2)
)
sampled = theory.simulate(jax.random.key(0), small, method, 1, T, replicas=2000)
known = theory.method_scan(small, method, 1, T)

fig, (left, right) = plt.subplots(1, 2)
left.loglog(TIMES, zou, label="published form")
left.loglog(TIMES, chi, label="chi-bound")
left.loglog(TIMES, exact, "k", label="exact")
left.set(
  xlabel="samples N", ylabel="excess risk", title="tail average, a = 1.5, b = 5"
)
left.legend()
show = np.arange(0, T + 1, 16)
right.plot(known.total, "k", label="exact, d = 64")
right.errorbar(
  show, sampled.mean[show], 2 * sampled.stderr[show], fmt="C0.",
  label="2000 sampled runs, 2 s.e.",
)  # fmt: skip
right.axvline(T // 2, color="0.6", lw=1)
right.text(
  0.52,
  0.9,
  "average starts",
  transform=right.transAxes,
  color="0.35",
  fontsize=8,
)
right.set(
  yscale="log",
  xlabel="updates",
  ylabel="excess risk",
  title="averaged from T / 2",
)
right.legend(loc="lower left")
plt.show()

# %% [markdown]
# **Figure.** Left: the two bounds and the exact risk of the tail average
# against samples, log-log. All three are parallel at the end; the chi-bound is
# about twice the exact risk and the published form about ten times. Right:
# exact risk and sampled means at d = 64 against updates. The risk falls, levels
# off, and falls again once the average starts; the sampled means lie on the
# curve.

# %% [markdown]
# ## How loose are they on random problems?

# %%
rng = np.random.default_rng(1)
ratios = {"published": [], "chi": []}
for _ in range(40):
  a, b = rng.uniform(1.05, 3.5, 2)
  index = np.arange(1.0, 101)
  m0 = index ** (a - b) * rng.standard_normal(100) ** 2
  trial = theory.from_spectrum(index**-a, m0, rng.uniform(0, 2))
  n = int(10 ** rng.uniform(1, 4))
  s = int(rng.choice([0, n]))
  step = rng.uniform(0.1, 0.9) / (3 * trial.lam.sum())
  value = theory.tail_average_at(trial, step, 1, s, n).total
  ratios["published"].append(theory.zou_bound(trial, step, s, n).total / value)
  ratios["chi"].append(theory.chi_bound(trial, step, 1, s, n).total / value)

# %%
z = np.abs((sampled.mean - known.total)[1:] / sampled.stderr[1:]).max()


def spread(name):
  """Smallest, median and largest ratio of a bound to the exact risk."""
  return "{:.2f} / {:.1f} / {:.0f}".format(
    *np.quantile(ratios[name], [0, 0.5, 1])
  )


rows = []
for name, (run, signal) in curves.items():
  known_slope = theory.exponents(1.5, 5.0, average=name, noise=False).bias
  signal_slope = theory.exponents(1.5, 5.0, average=name).bias
  for what, curve, power in (
    ("bias", run.bias, known_slope),
    ("signal alone", signal, signal_slope),
  ):
    rows.append(
      (
        f"slope of the {name} average's {what}",
        f"{power:.3f}",
        f"{theory.slope(TIMES, curve):.3f}",
      )
    )
parts = [curves[name][0].bias for name in ("uniform", "tail")]
hard = records["hard: a = 2, b = 1.5"][2]
easy_parts = [curves[name][0].total[-1] for name in ("uniform", "tail")]
hard_parts = [hard[name][0].total[-1] for name in ("uniform", "tail")]
rows += [
  (
    "uniform / tail bias: largest, at N = 1e8",
    "-",
    f"{np.max(parts[0] / parts[1]):.1f}, {parts[0][-1] / parts[1][-1]:.2f}",
  ),
  (
    "uniform / tail risk at N = 1e8, easy, hard",
    "-",
    f"{easy_parts[0] / easy_parts[1]:.2f}, {hard_parts[0] / hard_parts[1]:.2f}",
  ),
  ("published bound / exact: min, median, max", ">= 1", spread("published")),
  ("chi-bound / exact: min, median, max", ">= 1", spread("chi")),
  ("largest |z| of the sampled runs", "< 4.5", f"{z:.1f}"),
]
for claim, paper, ours in [("claim", "wanted", "ours"), *rows]:
  print(f"{claim:<44}{paper:<10}{ours}")

# %% [markdown]
# ## What came out
#
# As claimed: both bounds hold on 40 random problems. The chi-bound is between
# 1.00 and 3 times the exact risk and the published form between 4.94 and 82
# times. The sampled runs agree with the exact risk (largest |z| 2.8).
#
# Not as claimed: tail averaging does not change the exponent of the bias. For b
# = 5 > 2a the noise of the features outlasts the signal, and the bias of both
# averages falls with the slope -(2 - 1/a) = -1.333 (measured -1.337 and
# -1.333). The slopes -2 and -2.667 belong to the signal alone. The tail
# average's bias is smaller by a factor of 14.2 at most, and of 3.10 at 1e8
# samples. There the bias is a negligible part of the risk, and the uniform
# average has the lower risk (ratio 0.53), because it averages twice as many
# iterates. On the hard problem the tail average is better by a factor of 1.15
# only.
