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
# GN^-1/2; at full batch and in a foreign basis it is neither. "GN^-1/2" in a
# basis means diag(H)^-1/2 there, as in the paper.

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
# ## Three preconditioners in three bases
#
# Eigenbasis, a random rotation of each block of four neighbouring eigenvalues,
# and a random rotation of all directions; small and full batch; the best length
# over a grid, decayed linearly.

# %%
D = 32
block = theory.from_spectrum(np.arange(1.0, D + 1) ** -1.5, np.ones(D), 0.1)
rng = np.random.default_rng(0)
turn = np.zeros((D, D))
for k in range(0, D, 4):
  turn[k : k + 4, k : k + 4] = np.linalg.qr(rng.standard_normal((4, 4)))[0]
BASES = {
  "eigenbasis": None,
  "rotated blocks": turn,
  "full rotation": np.linalg.qr(rng.standard_normal((D, D)))[0],
}
RULES = {"Adam": "rms", "GN^-1/2": "gn-sqrt", "GN^-1": "gn"}
STEPS = 200
decay = theory.linear(1.0, STEPS)


def best(rule, batch, basis):
  """(last risk, curve) of the best stable length."""
  ends = []
  for peak in np.logspace(-3, 0.3, 40):
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
  for name, basis in BASES.items()
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
    for style, name in zip(("-", "--", ":"), BASES, strict=True):
      curve = quadrants[batch, name][label][1]
      tag = f"{label}, {name}" if axis is axes[1] else None
      axis.semilogy(np.maximum(curve, 1e-12), style, color=f"C{k}", label=tag)
  title = "full batch" if np.isinf(batch) else f"batch {batch}"
  axis.set(xlabel="updates", ylabel="excess risk", title=f"best step, {title}")
axes[1].legend(fontsize=6.5)
plt.show()

# %% [markdown]
# **Figure.** Left: the spread of p sqrt(lam) against updates for four batch
# sizes. The spread starts between 1.3 (batch 1) and 900 (batch 1e7). After 200
# updates it is 1 for batches up to 4096, and swings between 4 and 16 at 1e7.
# Middle: excess risk at batch 4 of the best step of each rule, in three bases.
# The eigenbasis and the rotated blocks end alike, the full rotation ends about
# three times higher for every rule; in each basis Adam and GN^-1/2 end close to
# each other. Right: the same at full batch, where rules and bases differ by
# many orders of magnitude.

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

# %% [markdown]
# **Figure.** Excess cross-entropy against updates at full batch. Gauss-Newton
# reaches the floor after 25 updates and Adam after 135. Gradient descent and
# Adam in a rotated basis are still above 1e-3 after 200.


# %%
def over(batch, basis, reference=None):
  """Last risk of Adam in a basis over that of GN^-1/2 in a reference."""
  root = quadrants[batch, reference or basis]["GN^-1/2"][0]
  return quadrants[batch, basis]["Adam"][0] / root


rows = [
  ("spread at B = 1, last step", "1", f"{spreads[1][-1]:.3f}"),
  ("spread at B = 1e7, last step", "> 1", f"{spreads[10_000_000][-1]:.2f}"),
  *(
    (f"Adam / GN^-1/2, batch 4, {name}", "~ 1", f"{over(4, name):.2f}")
    for name in BASES
  ),
  *(
    (
      f"Adam, {name} / GN^-1/2, eigenbasis, batch 4",
      "differs",
      f"{over(4, name, 'eigenbasis'):.2f}",
    )
    for name in ("rotated blocks", "full rotation")
  ),
  *(
    (
      f"Adam / GN^-1/2, full batch, {name}",
      "not 1",
      f"{over(np.inf, name):.0e}",
    )
    for name in BASES
  ),
  ("rms_scan against the loop above", "exact", f"{gap:.1e}"),
  (
    "phi(1.7), relative to 1e6 samples",
    "~ 1e-3",
    f"{abs(phi_sample / phi - 1):.1e}",
  ),
]
for claim, paper, ours in [("claim", "paper", "ours"), *rows]:
  print(f"{claim:<52}{paper:<10}{ours}")

# %% [markdown]
# ## What came out
#
# As the paper says: with noise, Adam is GN^-1/2 up to a number. At batch 1 the
# spread ends at 1.002. At batch 4 the final risk of Adam over that of GN^-1/2
# in the same basis is 1.17, 1.17 and 0.97 in the three bases. At full batch the
# two have nothing in common: the ratio is tiny in the eigenbasis and large in
# the rotated ones.
#
# Not as this notebook once claimed: at small batch a foreign basis does not
# part Adam from GN^-1/2. Adam in the rotated blocks even comes as close to
# GN^-1/2 of the eigenbasis as Adam in the eigenbasis does (1.18), since blocks
# of neighbouring eigenvalues are too mild a rotation to matter. A full rotation
# matters (3.10), and it hurts both rules alike.
