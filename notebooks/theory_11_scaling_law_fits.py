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
# # What can a scaling-law fit recover?
#
# **Question.** Given losses at many (N, D), which parameters of L = E +
# A N^-alpha + B D^-beta are recovered, with what intervals, and how biased is
# the IsoFLOP parabola?
#
# **Sources.** Hoffmann et al.; Besiroglu et al., arXiv 2404.10102; variable
# projection, arXiv 2603.22339. Published sweeps are not shipped: losses here
# are planted, or exact risks of truncated linear problems.
#
# **Claim.** Badly scaled objectives stop early; a scaled one recovers planted
# parameters; parabolas are biased off-centre.

# %%
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")

# %% [markdown]
# ## Planted parameters, with and without noise

# %%
PLANTED = {
  "A": 1437.6,
  "B": 9950.0,
  "E": 2.4913,
  "alpha": 0.42064,
  "beta": 0.46879,
}
N, D = (
  x.ravel()
  for x in np.meshgrid(np.logspace(7, 9.5, 9), np.logspace(8.5, 11, 10))
)


def planted(N, D):
  """The loss with the planted parameters, without noise."""
  p = PLANTED
  return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]


L = planted(N, D)
clean = theory.chinchilla(N, D, L)
rng = np.random.default_rng(0)
noisy_L = L * np.exp(0.003 * rng.standard_t(3, N.size))
noisy = theory.chinchilla(N, D, noisy_L)
intervals = noisy.bootstrap(100)
kaplan = theory.kaplan(N, D, noisy_L)

fig, (left, right) = plt.subplots(1, 2)
left.plot(L, noisy.predict(N, D), "o", ms=3, label="Chinchilla form")
left.plot(L, kaplan.predict(N, D), "x", ms=4, label="Kaplan form")
left.plot([L.min(), L.max()], [L.min(), L.max()], "k", lw=1)
left.set(
  xlabel="true loss (nats)",
  ylabel="fitted loss (nats)",
  title="0.3 % heavy-tailed noise",
)
left.legend()
names = list(PLANTED)
for k, name in enumerate(names):
  low, high = (x / PLANTED[name] for x in intervals[name])
  right.plot([low, high], [k, k], color="C0", lw=3)
  right.plot(noisy.params[name] / PLANTED[name], k, "ko", ms=4)
right.axvline(1, color="0.5", lw=1)
right.set(
  yticks=range(len(names)),
  yticklabels=names,
  xscale="log",
  xlabel="estimate / planted",
  title="90 % bootstrap intervals",
)
plt.show()

# %% [markdown]
# **Figure.** Left: fitted against true losses. The Chinchilla form lies on the
# diagonal; the Kaplan form scatters around it. Right: bootstrap intervals of
# the five parameters over their planted values. All contain 1. E, alpha and
# beta are known to a few percent, A to about ten, B to a factor of 1.7.

# %% [markdown]
# ## Exact losses of a linear model of width N on D samples
#
# Truncation at N leaves half of the tail as loss and as label noise; the
# second half of D steps is averaged, at a tenth of the largest stable step.
# The true loss is not additive in N and D (narrow models stop improving with
# D), so the fitted exponents are not the asymptotic ones.

# %%
a, b, noise = 1.5, 1.7, 0.5
widths, samples = (
  np.round(np.logspace(1, 4, 9)),
  np.round(np.logspace(3, 6.5, 10)),
)
grid, exact = [], []
for width in widths:
  tail = np.sum(np.arange(width + 1, 10**6) ** -b) + 1e-6 ** (b - 1) / (b - 1)
  problem = theory.power_law(width, a, b, noise + tail, nodes=6, head=64)
  eta = 0.1 * theory.eta_max(problem, 1)
  half = np.ceil(samples / 2)
  excess = theory.tail_average_at(problem, eta, 1, samples - half, half).total
  grid += [(width, n) for n in samples]
  exact.append(noise / 2 + tail / 2 + excess)
grid, exact = np.array(grid), np.concatenate(exact)
linear = theory.chinchilla(*grid.T, exact)

# %% [markdown]
# ## The parabola's bias
#
# `isoflop_optimum` refuses a grid whose parabola has no minimum inside it.

# %%
C = 1e20


def profile(n):
  """The planted loss of n parameters at a compute of C = 6 N D."""
  return planted(n, C / (6 * n))


fine = np.logspace(7, 11, 4001)
true = fine[np.argmin(profile(fine))]
shifts = np.linspace(-1, 1, 21)
bias = []
for shift in shifts:
  sizes = true * 10 ** (shift + np.linspace(-0.7, 0.7, 9))
  try:
    bias.append(theory.isoflop_optimum(sizes, profile(sizes)) / true)
  except theory.UndeterminedError:
    bias.append(np.nan)
bias = np.array(bias)
kept = shifts[np.isfinite(bias)]

fig, (left, right) = plt.subplots(1, 2)
for width in widths[::2]:
  rows_ = grid[:, 0] == width
  (line,) = left.loglog(
    grid[rows_, 1], exact[rows_], "o", ms=4, label=f"N = {width:g}"
  )
  left.loglog(
    grid[rows_, 1],
    linear.predict(width, grid[rows_, 1]),
    color=line.get_color(),
    lw=1,
  )
left.set(
  xlabel="samples D",
  ylabel="loss",
  title="exact linear model; lines: Chinchilla fit",
)
left.legend()
right.plot(shifts, bias, "o-")
right.axhline(1, color="0.5", lw=1)
for low, high in ((-1.05, kept[0]), (kept[-1], 1.05)):
  right.axvspan(low, high, color="0.9")
right.set(
  xlabel="grid centre / optimum (decades); grey: refused",
  xlim=(-1.05, 1.05),
  ylabel="estimate / true optimum",
  title="IsoFLOP parabola, 9 sizes over 1.4 decades",
)
plt.show()

# %% [markdown]
# **Figure.** Left: exact losses of five widths against samples, with the lines
# of the Chinchilla fit. The lines miss the dots of the narrow models at few
# samples, where the exact losses are already flat. Right: the parabola's
# estimate over the true optimum against the place of the grid's centre. The
# estimate is right within a third of a decade, falls to 0.8 for grids too low
# and rises to 1.6 for grids too high. Further out (grey) the fit is refused.

# %%
rows = [
  ("linear model: R^2 of the additive form", "< 1", f"{linear.r2:.4f}"),
  *(
    (f"{k}, no noise", f"{v:g}", f"{clean.params[k]:.5g}")
    for k, v in PLANTED.items()
  ),
  (
    "alpha, 0.3 % noise: 90 % interval",
    "covers .42",
    "{:.3f} .. {:.3f}".format(*intervals["alpha"]),
  ),
  (
    "linear model: alpha",
    f"b - 1 = {b - 1:.2f}",
    f"{linear.params['alpha']:.3f}",
  ),
  (
    "linear model: beta",
    f"(b-1)/a = {(b - 1) / a:.2f}",
    f"{linear.params['beta']:.3f}",
  ),
  (
    "parabola, centres that are not refused",
    "-",
    f"{kept[0]:.1f} .. {kept[-1]:.1f} decades",
  ),
  (
    "parabola, estimate / optimum at these ends",
    "biased",
    f"{bias[shifts == kept[0]][0]:.2f}x, {bias[shifts == kept[-1]][0]:.2f}x",
  ),
]
for claim, paper, ours in [("claim", "wanted", "ours"), *rows]:
  print(f"{claim:<42}{paper:<16}{ours}")

# %% [markdown]
# ## What came out
#
# As claimed: without noise the five planted parameters are recovered to five
# digits, and with 0.3 % noise the interval of alpha is 0.413 to 0.429, around
# the planted 0.42064. Parabolas off the centre are biased: by 0.78 and 1.59 at
# the two ends of the range in which they have a minimum inside their grid at
# all (-0.8 to 0.9 decades).
#
# Not as one might wish: the linear model is not additive in N and D (R^2
# 0.9471), and the fitted exponents 0.832 and 0.556 are not the asymptotic 0.70
# and 0.47. A good-looking fit of the Chinchilla form does not give the
# exponents of the model.
