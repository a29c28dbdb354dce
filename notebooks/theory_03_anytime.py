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
# # Which schedule is good at every horizon?
#
# **Question.** A cosine must know its end. Is there a horizon-free step size
# that, with averaging, is as good as a cosine tuned to each horizon?
#
# **Source.** arXiv 2602.03702 (theory section; exponents via a secondary page).
#
# **Claim.** eta_t ~ t^-gamma with gamma* = max(1 - a/b, 0) and averaging has
# the tuned rate T^{-(b-1)/b}; constant steps and 1/sqrt(t) do not.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")
T = 200_000
EVERY = 500
A, B = 1.5, 2.5
problem = theory.power_law(1e7, A, B, 1.0, nodes=4)
eta0 = 0.3 * theory.eta_max(problem, 1)
times = np.arange(0, T + 1, EVERY)[1:]


def averaged(a, b, gamma, T=T):
  p = theory.power_law(1e7, a, b, 1.0, nodes=4)
  eta = theory.anytime(0.3 * theory.eta_max(p, 1), T, gamma)
  return theory.avg_scan(
    p, theory.schedule(eta, 1), theory.theta_poly(T, 3.0), every=EVERY
  )[1].total[1:]


# %% [markdown]
# ## Horizon-free curves and the envelope of tuned cosines
#
# The envelope: for each horizon, the best last iterate over twelve peaks. The
# long cosine is one of them, read early.

# %%
gammas = {
  "constant": 0.0,
  "gamma* = 0.4": theory.gamma_star(A, B),
  "1 / sqrt(t)": 0.5,
}
curves = {name: averaged(A, B, gamma) for name, gamma in gammas.items()}

horizons = np.unique(np.round(np.logspace(3, np.log10(T), 7)).astype(int))
peaks = eta0 * np.logspace(-2, 0.3, 12)
envelope, best_peak = [], []


def cosine_ends(horizon):
  """Last risks of cosines with each peak."""
  shape = theory.cosine(1.0, int(horizon))

  def one(peak):
    schedule = theory.Schedule(peak * shape, np.ones(shape.size))
    return theory.final_risk(problem, schedule).total

  with theory.float64():
    return np.asarray(jax.jit(jax.vmap(one))(peaks))


for horizon in horizons:
  final = cosine_ends(horizon)
  envelope.append(float(np.min(final)))
  best_peak.append(peaks[int(np.argmin(final))])
long = theory.risk_scan(
  problem, theory.schedule(theory.cosine(best_peak[-1], T), 1), every=EVERY
).total[1:]

# %%
fig, (left, right) = plt.subplots(1, 2)
for name, curve in curves.items():
  left.loglog(times, curve, label=f"{name}, averaged")
left.loglog(times, long, ":", color="C3", label="one long cosine")
left.loglog(horizons, envelope, "k.-", label="cosine tuned per horizon")
left.set(
  xlabel="updates", ylabel="excess risk", title="a = 1.5, b = 2.5, batch 1"
)
left.legend()

grid = np.linspace(0, 0.7, 8)
exponent_pairs = [(1.5, 2.5), (2.0, 3.0), (2.0, 1.5)]
for a, b in exponent_pairs:
  slopes = [theory.slope(times, averaged(a, b, g)) for g in grid]
  predicted = [theory.exponents(a, b, g, "poly").risk for g in grid]
  (line,) = right.plot(grid, slopes, "o", label=f"a = {a}, b = {b}")
  right.plot(grid, predicted, color=line.get_color(), lw=1)
  right.axvline(theory.gamma_star(a, b), color=line.get_color(), ls=":", lw=1)
right.set(
  xlabel="gamma", ylabel="slope of log risk", title="measured (dots), predicted"
)
right.legend()
plt.show()

# %% [markdown]
# ## The best gamma over the plane of problems

# %%
a_grid, b_grid = np.linspace(1.2, 3, 7), np.linspace(1.2, 4, 8)
found = np.zeros((a_grid.size, b_grid.size))
trial = np.linspace(0, 0.8, 17)
short = 20_000
for i, a in enumerate(a_grid):
  for j, b in enumerate(b_grid):
    finals = [averaged(a, b, g, short)[-1] for g in trial]
    found[i, j] = trial[int(np.argmin(finals))]
fig, axis = plt.subplots(figsize=(5.2, 3.8))
mesh = axis.pcolormesh(b_grid, a_grid, found, cmap="cividis", shading="nearest")
lines = axis.contour(
  b_grid, a_grid, np.maximum(1 - a_grid[:, None] / b_grid, 0),
  levels=[0.01, 0.2, 0.4, 0.6], colors="w",
)  # fmt: skip
axis.clabel(lines, fmt="%.2g")
axis.set(
  xlabel="source exponent b",
  ylabel="capacity exponent a",
  title="best gamma at T = 20,000; lines: 1 - a/b",
)
fig.colorbar(mesh, label="gamma")
plt.show()

# %%
best = theory.slope(times, curves["gamma* = 0.4"])
const = theory.slope(times, curves["constant"])
root = theory.slope(times, curves["1 / sqrt(t)"])
gap = curves["gamma* = 0.4"][-1] / envelope[-1]
early = long[times == 20_000][0] / np.interp(20_000, horizons, envelope)
rows = [
  ("slope at gamma*", "-(b-1)/b = -0.600", f"{best:.3f}"),
  ("slope at constant step", "-(1-1/a) = -0.333", f"{const:.3f}"),
  ("slope at 1/sqrt(t)", "-0.500", f"{root:.3f}"),
  ("anytime / tuned cosine at T", "bounded", f"{gap:.2f}"),
  ("long cosine read at T/10 / tuned", "far from 1", f"{early:.2f}"),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<36}{paper:<22}{ours}")
