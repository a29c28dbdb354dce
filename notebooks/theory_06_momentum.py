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
# # Does momentum help, and which momenta are the same?
#
# **Question.** Heavy ball, Nesterov, decoupled momentum, ASGD, Schedule-Free:
# at which batch sizes do they beat SGD, and which of them coincide?
#
# **Source.** arXiv 2502.02431 (theorem restated as recursions).
#
# **Claim.** They help past the noise-dominated batch only; ASGD is decoupled
# momentum, Schedule-Free is momentum with a growing coefficient.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")
problem = theory.power_law(1e4, 1.5, 2.0, 0.1, nodes=4, head=16)
SAMPLES = 2**15

# %% [markdown]
# ## Every method is sampled

# %%
small = theory.power_law(16, 1.0, 1.5, 0.5, nodes=None)
T, B = 120, 2
METHODS = {
  "heavy ball": theory.heavy_ball(0.03, 0.8),
  "Nesterov": theory.nesterov(0.03, 0.8),
  "decoupled": theory.decoupled(0.03, 0.8, 2.0),
  "AdEMAMix": theory.ademamix(0.08, 0.8, 0.95, 1.0),
  "ASGD": theory.asgd(0.6, 0.2, 0.2, 0.06),
  "Schedule-Free": theory.schedule_free(0.1, 0.9, theory.theta_uniform(T)),
}
fig, axes = plt.subplots(2, 3, figsize=(9.5, 5), sharex=True)
worst = 0.0
for axis, (name, method) in zip(axes.flat, METHODS.items(), strict=True):
  exact = theory.method_scan(small, method, B, T).total
  sampled = theory.simulate(jax.random.key(3), small, method, B, T, 4000)
  worst = max(
    worst, np.max(np.abs((sampled.mean - exact)[1:] / sampled.stderr[1:]))
  )
  show = np.arange(0, T + 1, 10)
  axis.semilogy(exact, label="exact")
  axis.errorbar(
    show,
    sampled.mean[show],
    2 * sampled.stderr[show],
    fmt="k.",
    ms=4,
    label="sampled, 2 s.e.",
  )
  axis.set_title(name)
axes[0, 0].legend()
for axis in axes[1]:
  axis.set_xlabel("updates")
for axis in axes[:, 0]:
  axis.set_ylabel("excess risk")
plt.show()

# %% [markdown]
# **Figure.** Six panels, one for each method: excess risk against updates.
# Every exact curve falls from about 1 to between 0.04 and 0.07, and the sampled
# means lie on the curves.

# %% [markdown]
# ## Best final risk relative to SGD, linear decay to zero
#
# 2^15 samples; step size, beta and alpha on grids.

# %%
BETAS = np.array([0.5, 0.9, 0.97])
ALPHAS = np.array([0.2, 1.0, 4.0])


def best(batch, family, *grids):
  """Best last risk over peaks and the family's own grids."""
  steps = SAMPLES // batch
  decay = theory.linear(1.0, steps)
  peaks = theory.eta_max(problem, batch) * np.logspace(-1.5, 1.8, 18)

  def one(peak, *rest):
    method = family(peak * decay, *rest)
    return theory.method_scan(problem, method, float(batch), steps).total[-1]

  cells = [x.ravel() for x in np.meshgrid(peaks, *grids)]
  with theory.float64():
    return np.nanmin(np.asarray(jax.jit(jax.vmap(one))(*cells)))


def scaled_decoupled(eta, beta, alpha):
  """Decoupled momentum whose steps add up to eta, as those of SGD do."""
  return theory.decoupled(eta / (1 / (1 - beta) + alpha), beta, alpha)


FAMILIES = {
  "heavy ball": (lambda eta, b: theory.heavy_ball(eta * (1 - b), b), BETAS),
  "Nesterov": (lambda eta, b: theory.nesterov(eta * (1 - b), b), BETAS),
  "decoupled": (scaled_decoupled, BETAS, ALPHAS),
}
batches = [8, 64, 256, 1024]
ratios = {name: [] for name in FAMILIES}
for batch in batches:
  base = best(batch, theory.sgd)
  for name, family in FAMILIES.items():
    ratios[name].append(best(batch, *family) / base)

# %% [markdown]
# ## Identities, and stability limits

# %%
al, be, ga, de = 0.6, 0.2, 0.3, 0.1
asgd = theory.asgd(al, be, ga, de)
eta = (1 - al) * (ga - de)
seen = theory.method_scan(small, asgd._replace(h=asgd.e), B, 400).total
twin = theory.method_scan(
  small, theory.decoupled(eta, al * (1 - be), de / eta), B, 400
).total
c = theory.theta_uniform(400)
free = theory.schedule_free(0.1, 0.9, c)
P, f = np.zeros((400, 2, 2)), np.zeros((400, 2))
P[:, 0, 0], P[:, 0, 1], P[:, 1, 1] = 1, 0.9 * c, 1 - c
f[:, 0], f[:, 1] = 0.1 * (c + 0.1 * (1 - c)), 0.1 * (1 - c)
first = np.array([1.0, 0.0])
growing = theory.Method(P, f, first, first, first)
free_seen = theory.method_scan(small, free._replace(h=free.e), B, 400).total
free_twin = theory.method_scan(small, growing, B, 400).total

limits = {
  "SGD": theory.sgd,
  "heavy ball .9": lambda e: theory.heavy_ball(e, 0.9),
  "Nesterov .9": lambda e: theory.nesterov(e, 0.9),
  "decoupled .9, 2": lambda e: theory.decoupled(e, 0.9, 2.0),
}
grid = 2.0 ** np.arange(0, 11, 2)
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
for name, values in ratios.items():
  axes[0].semilogx(batches, values, "o-", label=name)
axes[0].set(
  xlabel="batch size",
  ylabel="risk / best SGD",
  ylim=(0, 1.1),
  title="best tuned, 2^15 samples",
)
axes[0].legend()
axes[1].semilogy(np.abs(twin / seen - 1) + 1e-17, label="ASGD = decoupled")
axes[1].semilogy(
  np.abs(free_twin / free_seen - 1) + 1e-17, label="Schedule-Free = momentum"
)
axes[1].set(
  xlabel="updates",
  ylabel="relative difference",
  ylim=(1e-17, 1e-12),
  title="identities at the gradient point",
)
axes[1].legend()
for name, family in limits.items():
  axes[2].loglog(
    grid,
    [theory.method_eta_max(small, family, b, rtol=1e-6) for b in grid],
    "o-",
    ms=3,
    label=name,
  )
axes[2].set(
  xlabel="batch size",
  ylabel="largest stable step",
  title="exact mean-square limits, d = 16",
)
axes[2].legend()
plt.show()

# %% [markdown]
# **Figure.** Left: the best final risk over that of SGD against the batch size.
# All three momenta start just below 1 at batch 8, fall to about a quarter at
# batch 256 and rise again at 1024, heavy ball most. Middle: the relative
# differences of the two pairs of methods; both stay below 1e-14. Right: the
# largest stable step against the batch size. At batch 1 every momentum allows a
# much smaller step than SGD; at large batches only heavy ball allows a larger
# one.

# %%
rows = [
  ("heavy ball / SGD at B = 8", "~ 1", f"{ratios['heavy ball'][0]:.2f}"),
  (
    "heavy ball / SGD at B = 256",
    "well below 1",
    f"{ratios['heavy ball'][2]:.2f}",
  ),
  (
    "heavy ball / SGD at B = 1024",
    "well below 1",
    f"{ratios['heavy ball'][3]:.2f}",
  ),
  (
    "decoupled / SGD at B = 256",
    "well below 1",
    f"{ratios['decoupled'][2]:.2f}",
  ),
  (
    "ASGD = decoupled momentum",
    "identity",
    f"{np.abs(twin / seen - 1).max():.1e}",
  ),
  (
    "Schedule-Free = momentum",
    "identity",
    f"{np.abs(free_twin / free_seen - 1).max():.1e}",
  ),
  ("largest |z| over six methods", "< 4.5", f"{worst:.1f}"),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<34}{paper:<16}{ours}")

# %% [markdown]
# ## What came out
#
# As the paper says: at batch 8 heavy ball gains little (0.94 of the risk of the
# best SGD), and at batch 256 heavy ball reaches 0.27 and decoupled momentum
# 0.25. Both identities hold to rounding error. All six methods agree with their
# sampled means (largest |z| 3.2).
#
# What the claim does not say: the gain shrinks again at batch 1024, where only
# 32 steps are left; heavy ball reaches 0.56 there.
