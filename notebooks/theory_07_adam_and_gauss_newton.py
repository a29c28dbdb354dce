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
# # When is Adam the inverse square root of Gauss-Newton?
#
# **Question.** Adam divides by the root of E g^2. On least squares, is that
# GN^-1/2, GN^-1, or neither, and does it depend on batch and basis?
#
# **Source.** arXiv 2510.13680.
#
# **Claim.** At small batch E g_i^2 is proportional to lam_i, so Adam tends to
# GN^-1/2; at full batch and in a foreign basis it is neither.

# %%
import matplotlib.pyplot as plt
import numpy as np

import theory

plt.style.use("theory.mplstyle")

# %% [markdown]
# ## The preconditioner over lam^-1/2, by batch size
#
# p_i^2 E g_i^2 = 1, and the spread max / min of p_i sqrt(lam_i) is 1 when Adam
# is GN^-1/2 times a number. The recursion below is `rms_scan`'s, written out.

# %%
problem = theory.power_law(1000, 1.5, 2.0, 1.0, nodes=None)
lam, T, eta = problem.lam, 2000, 5e-3
spreads, gap = {}, 0.0
for batch in (1, 64, 4096, 10_000_000):
  z, path = problem.m0, []
  for _ in range(T):
    g2 = (1 + 1 / batch) * lam**2 * z + lam / batch * (lam @ z + 1)
    p = g2**-0.5
    ratio = p * lam**0.5
    path.append(ratio.max() / ratio.min())
    z = (1 - 2 * eta * p * lam) * z + eta**2
  spreads[batch] = np.array(path)
  scan = theory.rms_scan(problem, theory.schedule(np.full(T, eta), batch))
  gap = max(gap, abs(scan.total[-1] / (lam @ z / 2) - 1))

# %% [markdown]
# ## Four preconditioners in two bases
#
# Eigenbasis and a random rotation of each block of four neighbouring
# eigenvalues, small and full batch; the best constant length over a grid.

# %%
D = 32
block = theory.from_spectrum(np.arange(1.0, D + 1) ** -1.5, np.ones(D), 0.1)
rng = np.random.default_rng(0)
turn = np.zeros((D, D))
for k in range(0, D, 4):
  turn[k : k + 4, k : k + 4] = np.linalg.qr(rng.standard_normal((4, 4)))[0]
RULES = {"Adam": "rms", "GN^-1/2": "gn-sqrt", "GN^-1": "gn"}
STEPS = 200
decay = theory.linear(1.0, STEPS)


def best(rule, batch, basis):
  ends = []
  for peak in np.logspace(-3, 0.3, 16):
    schedule = theory.schedule(peak * decay, batch)
    with np.errstate(all="ignore"):
      curve = theory.rms_scan(block, schedule, basis, rule=rule, b2=0.9)
    # Past the stability limit rounding can make a risk negative.
    stable = np.all(np.isfinite(curve.total) & (curve.total > -1e-12))
    ends.append((curve.total[-1] if stable else np.inf, curve.total))
  return min(ends, key=lambda pair: pair[0])


quadrants = {
  (batch, name): {
    label: best(rule, batch, basis) for label, rule in RULES.items()
  }
  for batch in (4, np.inf)
  for name, basis in (("eigenbasis", None), ("rotated blocks", turn))
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
for batch, path in spreads.items():
  axes[0].loglog(np.arange(1, T + 1), path, label=f"B = {batch:g}")
axes[0].set(
  xlabel="updates",
  ylabel="max / min of p sqrt(lam)",
  title="1: Adam is GN^-1/2",
)
axes[0].set_ylim(0.8, 3e5)
axes[0].legend(loc="upper left", ncol=2)
for axis, batch in zip(axes[1:], (4, np.inf), strict=True):
  for k, label in enumerate(RULES):
    for style, name in (("-", "eigenbasis"), ("--", "rotated blocks")):
      curve = quadrants[batch, name][label][1]
      tag = f"{label}, {name}" if axis is axes[1] else None
      axis.semilogy(np.maximum(curve, 1e-12), style, color=f"C{k}", label=tag)
  title = "full batch" if np.isinf(batch) else f"batch {batch}"
  axis.set(xlabel="updates", ylabel="excess risk", title=f"best step, {title}")
axes[1].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Logistic regression, full batch
#
# Population paths from one-dimensional Gaussian integrals; no sampling.

# %%
d = 64
spectrum = np.arange(1.0, d + 1) ** -1.5
target = np.ones(d)
lengths = {"gd": 4.0, "gn": 0.5, "adam": 0.02}
names = {
  "gd": "gradient descent",
  "gn": "Gauss-Newton",
  "adam": "Adam, b2 = 0.9",
}
basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
paths = {
  names[rule]: theory.logistic_path(
    spectrum,
    np.zeros(d),
    target,
    length * theory.linear(1.0, 200),
    rule=rule,
    b2=0.9,
  ).loss
  for rule, length in lengths.items()
}
paths["Adam, rotated"] = theory.logistic_path(
  spectrum, np.zeros(d), target, 0.02 * theory.linear(1.0, 200),
  rule="adam", basis=basis, b2=0.9,
).loss  # fmt: skip

x = rng.standard_normal((1_000_000, 2))
phi, psi, _ = theory.logistic_moments(1.7)
p = 1 / (1 + np.exp(-1.7 * x[:, 0]))
phi_sample = np.mean(p * (1 - p))
fig, axis = plt.subplots(figsize=(5.5, 3.6))
for name, loss in paths.items():
  axis.semilogy(np.maximum(loss, 1e-14), label=name)
axis.set(
  xlabel="updates",
  ylabel="excess cross-entropy (nats)",
  title="logistic regression, d = 64, full batch",
)
axis.legend()
plt.show()

# %%
small = quadrants[4, "eigenbasis"]
full = quadrants[np.inf, "rotated blocks"]
rows = [
  ("spread at B = 1, last step", "1", f"{spreads[1][-1]:.3f}"),
  ("spread at B = 1e7, last step", "> 1", f"{spreads[10_000_000][-1]:.2f}"),
  (
    "Adam / GN^-1/2, batch 4, eigenbasis",
    "~ 1",
    f"{small['Adam'][0] / small['GN^-1/2'][0]:.3f}",
  ),
  (
    "same, rotated blocks",
    "differs",
    f"{quadrants[4, 'rotated blocks']['Adam'][0] / small['GN^-1/2'][0]:.3f}",
  ),
  (
    "same at full batch, rotated blocks",
    ">> 1",
    f"{full['Adam'][0] / full['GN^-1/2'][0]:.1e}",
  ),
  ("rms_scan against the loop above", "exact", f"{gap:.1e}"),
  (
    "phi(1.7), relative to 1e6 samples",
    "~ 1e-3",
    f"{abs(phi_sample / phi - 1):.1e}",
  ),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<40}{paper:<10}{ours}")
