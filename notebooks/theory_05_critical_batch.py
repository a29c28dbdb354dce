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
# # What sets the critical batch size: data or width?
#
# **Question.** Beyond some batch, more samples per step stop saving steps.
# Does that batch grow with the data or with the model?
#
# **Source.** arXiv 2410.21676; its released step counts are printed by
# plots/chinchilla.ipynb of github.com/hlzhang109/critical-batch-size (MIT).
#
# **Claim.** With data, as D^(1 - a/b) for least squares, and not with width;
# at Chinchilla tokens the published curve is 93.20 N^.4683 (N in millions).

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

import theory

plt.style.use("theory.mplstyle")
SIGMA2 = 0.25

# %% [markdown]
# ## Exact risk over (step size, batch, samples)
#
# Second-half averages in closed form, the step size tuned at every point.


# %%
def study(a, b, batches, samples, d=1e5, count=20):
  problem = theory.power_law(d, a, b, SIGMA2, nodes=4)
  etas = theory.eta_grid(problem, batches, count, 3e-4)
  table = theory.risk_table(problem, etas, batches, samples)
  return table, theory.critical_batch(table, batches, samples)


samples = np.logspace(4.5, 6.3, 11)
CASES = {(1.5, 3.0): 4.3, (1.5, 2.0): 3.0, (2.0, 1.5): 1.2}
studies = {}
for (a, b), top in CASES.items():
  batches = np.logspace(0, top, 13)
  studies[a, b] = (batches, *study(a, b, batches, samples))

# %%
fig, (left, right) = plt.subplots(1, 2)
batches, table, _ = studies[1.5, 3.0]
best = table.min(axis=0)
for k, target in enumerate(best[0, [1, 4, 7]]):
  need = np.array([theory.data_to_target(row, samples, target) for row in best])
  left.loglog(batches, need / batches, "o-", ms=3, label=f"risk {target:.1e}")
  left.loglog(batches, need[0] / batches, ":", color=f"C{k}", lw=1)
left.set(
  xlabel="batch size",
  ylabel="steps to the target",
  title="a = 1.5, b = 3; dotted: linear scaling",
)
left.legend()

slopes = {}
for (a, b), (_, _, critical) in studies.items():
  seen = np.isfinite(critical) & (samples < 6e5)
  slopes[a, b] = np.polyfit(np.log(samples[seen]), np.log(critical[seen]), 1)[0]
  (line,) = right.loglog(
    samples[seen], critical[seen], "o", label=f"a = {a}, b = {b}"
  )
  guide = critical[seen][0] * (samples[seen] / samples[seen][0]) ** max(
    1 - a / b, 0
  )
  right.loglog(samples[seen], guide, color=line.get_color(), lw=1)
right.set(
  xlabel="samples D", ylabel="critical batch", title="lines: slope 1 - a/b"
)
right.legend()
right.xaxis.set_minor_formatter(NullFormatter())
plt.show()

# %% [markdown]
# ## Width, and a check against sampled runs

# %%
widths = [10, 30, 100, 1000, 100_000]
at = 1.7e5 * np.logspace(0, 1, 5)
some = np.logspace(0, 4.5, 14)
by_width = [study(1.5, 3.0, some, at, d, 16)[1][0] for d in widths]

small = theory.power_law(32, 1.5, 3.0, SIGMA2, nodes=None)
T, eta = 100, 0.2
method = theory.averaged(
  theory.sgd(np.full(T, eta)), theory.theta_uniform(T, 50)
)
checks = []
for batch in (1, 4, 16):
  sampled = theory.simulate(
    jax.random.key(batch), small, method, batch, T, 2000
  )
  exact = theory.tail_average_at(small, eta, batch, 51, 50).total
  checks.append((batch, exact, sampled.mean[-1], sampled.stderr[-1]))

# %% [markdown]
# ## The published curve, from the released step counts

# %%
STEPS = {
  85: [46000, 23000, 13282, 7000, 3840, 2500, 1800, 1600, 1600],
  151: [96000, 49000, 24000, 11951, 7128, 4200, 2760, 2400, 2300],
  302: [196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879],
  604: [311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800],
  1200: [643000, 331000, 176000, 94000, 46500, 25000, 15360, 8900, 6500],
}
lm_batches = 2.0 ** np.arange(6, 15)
fits = {
  size: theory.steps_fit(lm_batches, steps) for size, steps in STEPS.items()
}
sizes = np.array(list(STEPS), float)
law = theory.cbs_law(sizes, [fit.critical for fit in fits.values()])
published = theory.cbs_law(sizes, [745.3, 955.2, 1393.7, 1888.5, 2533.4])

fig, (left, right) = plt.subplots(1, 2)
left.semilogx(widths, by_width, "o-", label="critical batch at D = 1.7e5")
for batch, exact, mean, stderr in checks:
  print(
    f"B = {batch:>2}: exact {exact:.5f}, sampled {mean:.5f} +- {stderr:.5f}"
  )
left.set(
  xlabel="width d",
  ylabel="critical batch",
  title="a = 1.5, b = 3",
  ylim=(0, 1.2 * np.nanmax(by_width)),
)
left.legend()
for size, fit in fits.items():
  (line,) = right.loglog(lm_batches, STEPS[size], "o", ms=4, label=f"{size}M")
  right.loglog(
    lm_batches,
    fit.steps_min + fit.samples_min / lm_batches,
    color=line.get_color(),
    lw=1,
  )
right.set(
  xlabel="batch size (sequences)",
  ylabel="steps to the target loss",
  title="released counts; lines: a0 + b0 / B",
)
right.legend()
plt.show()

# %%
z = max(abs(mean - exact) / stderr for _, exact, mean, stderr in checks)
flat = by_width[2:]
rows = [
  ("slope, a = 1.5, b = 3", ".500", f"{slopes[1.5, 3.0]:.3f}"),
  ("slope, a = 1.5, b = 2", ".250", f"{slopes[1.5, 2.0]:.3f}"),
  ("slope, a = 2, b = 1.5", "0", f"{slopes[2.0, 1.5]:.3f}"),
  ("largest / smallest over d >= 100", "flat", f"{max(flat) / min(flat):.3f}"),
  (
    "CBS(N), from the published batches",
    "93.20 N^.4683",
    "{k:.2f} N^{p:.4f}".format(**published.params),
  ),
  (
    "CBS(N), from the printed counts",
    "93.20 N^.4683",
    "{k:.2f} N^{p:.4f}".format(**law.params),
  ),
  ("largest |z| of the sampled runs", "< 4.5", f"{z:.1f}"),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<38}{paper:<16}{ours}")
