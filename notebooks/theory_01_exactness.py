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
# # Is the risk of SGD on least squares known exactly?
#
# **Question.** One-pass SGD sees fresh Gaussian data. Can its expected excess
# risk be computed without sampling, without a d x d matrix, and without a loop
# over time?
#
# **Sources.** Bordelon and Pehlevan, arXiv 2106.02713, and Meterez et al.,
# arXiv 2506.15535, for the O(d) recursion; the closed form is this package's.
#
# **Claim.** Yes, to rounding error.

# %%
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")

# %% [markdown]
# ## A rotated covariance: dense moments, samples, the O(d) recursion
#
# The dense recursion for C = E[(w - w*)(w - w*)'] is written here from the
# fourth moment of a Gaussian; `from_covariance` rotates and keeps diagonals.

# %%
d, T, batch, eta, sigma2 = 16, 200, 2, 0.15, 0.5
rng = np.random.default_rng(0)
basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
H = basis @ np.diag(np.arange(1.0, d + 1) ** -1.0) @ basis.T
delta = rng.standard_normal(d)

C, dense = np.outer(delta, delta), []
for _ in range(T + 1):
  dense.append(np.trace(H @ C) / 2)
  noise = (1 + 1 / batch) * H @ C @ H
  noise += (np.trace(H @ C) + sigma2) / batch * H
  C = C - eta * (H @ C + C @ H) + eta**2 * noise

problem = theory.from_covariance(H, delta, np.zeros(d), sigma2)
schedule = theory.schedule(np.full(T, eta), batch)
scan = theory.risk_scan(problem, schedule)
closed = theory.risk_at(problem, eta, batch, np.arange(T + 1.0))
sampled = theory.simulate(
  jax.random.key(0), problem, theory.sgd(eta), batch, T, replicas=4000
)
operator_error = np.abs(scan.total / dense - 1)
closed_error = np.abs(closed.total / scan.total - 1)
z_score = np.abs(
  (sampled.mean - scan.total) / np.maximum(sampled.stderr, 1e-300)
)[1:]

# %%
fig, (left, right) = plt.subplots(1, 2)
show = np.arange(0, T + 1, 10)
left.plot(scan.total, label="exact")
left.plot(scan.bias, "--", label="bias")
left.plot(scan.variance, ":", label="variance")
left.errorbar(
  show, sampled.mean[show], 2 * sampled.stderr[show], fmt="k.", ms=4,
  label="4000 sampled runs, 2 s.e.",
)  # fmt: skip
left.set(
  yscale="log", xlabel="updates", ylabel="excess risk", title="d = 16, B = 2"
)
left.legend()
floor = 1e-17
right.semilogy(operator_error + floor, label="O(d) recursion against d x d")
right.semilogy(closed_error + floor, label="closed form against O(d)")
right.set(xlabel="updates", ylabel="relative difference", ylim=(1e-17, 1e-12))
right.axhline(2.2e-16, color="0.4", lw=1, label="float64 rounding")
right.legend()
plt.show()

# %% [markdown]
# **Figure.** Left: excess risk against updates. The exact curve falls from 2.6
# to 0.04 and the sampled means lie on it. The bias falls throughout; the
# variance rises to 0.04 and is the larger of the two after 100 updates. Right:
# the relative differences between the three computations. All lie below 1e-15.

# %% [markdown]
# ## A million steps, and a trillion
#
# A power law with d = 100,000 becomes 151 nodes. An arbitrary schedule costs
# one pass over its steps; a constant step size costs nothing per step.

# %%
big = theory.power_law(1e5, 1.5, 2.0, 1.0)
eta = 0.3 * theory.eta_max(big, 4)
cosine = theory.schedule(theory.cosine(eta, 1_000_000), 4)
theory.risk_scan(big, cosine, every=1000)
start = time.perf_counter()
curve = theory.risk_scan(big, cosine, every=1000)
scan_seconds = time.perf_counter() - start
times = np.logspace(0, 12, 60)
theory.risk_at(big, eta, 4, times)
start = time.perf_counter()
forever = theory.risk_at(big, eta, 4, times)
closed_seconds = time.perf_counter() - start

# %%
fig, axis = plt.subplots(figsize=(5.5, 3.6))
axis.loglog(
  np.arange(1, 1001) * 1000, curve.total[1:], label="cosine, 1e6 steps"
)
axis.loglog(times, forever.total, "--", label="constant step")
rest = theory.stationary(big, eta, 4) @ big.lam / 2
axis.axhline(rest, color="0.5", lw=1)
axis.text(1, rest * 1.1, "stationary", color="0.35", fontsize=8)
axis.set(
  xlabel="updates", ylabel="excess risk", title="d = 1e5, a = 1.5, b = 2, B = 4"
)
axis.legend()
plt.show()

# %% [markdown]
# **Figure.** Excess risk against updates, log-log. The constant step falls to
# its stationary risk near 0.08 within 1000 updates and stays there up to 1e12.
# The cosine keeps to the same level until 1e5 updates and then falls below
# 0.001 at its end, 1e6.

# %%
rows = [
  ("O(d) recursion against d x d", "exact", f"{operator_error.max():.1e}"),
  ("closed form against the recursion", "exact", f"{closed_error.max():.1e}"),
  ("largest |z| of 4000 sampled runs", "< 4.5", f"{z_score.max():.1f}"),
  ("1e6 steps of a cosine, seconds", "<= 0.5", f"{scan_seconds:.2f}"),
  ("60 times up to 1e12, seconds", "<= 1", f"{closed_seconds:.4f}"),
]
for claim, wanted, ours in [("claim", "wanted", "ours"), *rows]:
  print(f"{claim:<38}{wanted:<10}{ours}")

# %% [markdown]
# ## What came out
#
# The claim holds. The O(d) recursion differs from the d x d recursion by about
# 1e-15 of the risk at most, and the closed form differs from the O(d) recursion
# by less. The means of 4000 sampled runs lie within 2.5 standard errors of the
# exact risk at each of 200 updates. A million steps take a fraction of a
# second; 60 times up to a trillion steps take less. Nothing was unlike the
# claim.
