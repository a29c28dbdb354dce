"""Claims of the literature and what `theory` computes for them, as a table.

    python -m benchmarks.theory_claims

About two minutes. Each row states the claim, where it comes from, the value
to compare with and ours; "ok" compares them by the tolerance written in the
row's function. Everything is exact unless the row says otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import theory


def exact_recursion():
  """The O(d) recursion against dense moments of a rotated covariance."""
  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.standard_normal((12, 12)))
  H = basis @ np.diag(rng.uniform(0.05, 1, 12)) @ basis.T
  delta, eta, B, sigma2 = rng.standard_normal(12), 0.1, 3, 0.4
  C, dense = np.outer(delta, delta), []
  for _ in range(301):
    dense.append(np.trace(H @ C) / 2)
    noise = (1 + 1 / B) * H @ C @ H + (np.trace(H @ C) + sigma2) / B * H
    C = C - eta * (H @ C + C @ H) + eta**2 * noise
  problem = theory.from_covariance(H, delta, np.zeros(12), sigma2)
  schedule = theory.schedule(np.full(300, eta), B)
  error = np.abs(theory.risk_scan(problem, schedule).total / dense - 1).max()
  return (
    "exact O(d) recursion",
    "2106.02713",
    "<= 1e-10",
    f"{error:.1e}",
    (error <= 1e-10),
  )


def closed_form():
  """Risk without a time loop against the loop."""
  worst = 0.0
  for a, b, B, share in (
    (1.2, 1.5, 1, 0.5),
    (2, 3, 4, 0.9),
    (1.5, 2.5, 4, 1.05),
  ):
    problem = theory.power_law(300, a, b, 0.3, nodes=None)
    eta = share * theory.eta_max(problem, B)
    scan = theory.risk_scan(problem, theory.schedule(np.full(2000, eta), B))
    risk = theory.risk_at(problem, eta, B, np.arange(2001.0))
    worst = max(worst, np.abs(risk.total / scan.total - 1).max())
  return (
    "risk without a time loop",
    "this package",
    "<= 1e-10",
    (f"{worst:.1e}"),
    worst <= 1e-10,
  )


def _averaged_slope(a, b, gamma, T=400_000):
  problem = theory.power_law(1e7, a, b, 1.0, nodes=4)
  eta = theory.anytime(0.3 * theory.eta_max(problem, 1), T, gamma)
  _, averaged = theory.avg_scan(
    problem, theory.schedule(eta, 1), theory.theta_poly(T, 3.0), every=1000
  )
  return theory.slope(np.arange(0, T + 1, 1000)[1:], averaged.total[1:])


def anytime_optimal():
  """Slope of the averaged risk at gamma* = 1 - a / b."""
  return _slopes("gamma* = 1 - a/b with averaging", (0.4, 1 / 3))


def anytime_constant():
  """Slope of the averaged risk at constant step size."""
  return _slopes("constant step + averaging is slower", (0.0, 0.0))


def _slopes(claim, gammas):
  cases = [(1.5, 2.5), (2.0, 3.0)]
  ours = [_averaged_slope(*ab, g) for ab, g in zip(cases, gammas, strict=True)]
  want = [
    theory.exponents(*ab, g, "poly").risk
    for ab, g in zip(cases, gammas, strict=True)
  ]
  return (
    claim,
    "2602.03702",
    _list(want),
    _list(ours),
    (np.abs(np.subtract(ours, want)).max() < 0.02),
  )


def noiseless():
  """Exponents of the last iterate without label noise."""
  cases, ours, want = [(1.5, 2.0), (1.5, 2.9), (1.5, 4.5), (2.0, 6.0)], [], []
  ts = np.logspace(6, 7, 20)
  for a, b in cases:
    problem = theory.power_law(1e9, a, b, 0.0)
    risk = theory.risk_at(problem, 0.3 * theory.eta_max(problem, 1), 1, ts)
    ours.append(theory.slope(ts, risk.total))
    want.append(theory.exponents(a, b, average="last", noise=False).risk)
  return (
    "noiseless min((b-1)/a, 2-1/a)",
    "2405.15074",
    _list(want),
    (_list(ours)),
    np.abs(np.subtract(ours, want)).max() < 0.02,
  )


def _phases(eta, a, b, samples=2.0**14, phases=7, batch=8.0):
  k = np.arange(phases)
  B = batch * b**k
  return theory.Stages(eta * a**-k, B, np.round(samples / B))


def _phase_risks(problem, stages, normalised):
  schedule = theory.unroll(stages)
  scan = theory.nsgd_scan if normalised else theory.risk_scan
  return scan(problem, schedule).total[np.cumsum(stages.steps).astype(int)]


def _ramp(normalised, a, b):
  """Worst and last risk of a ramp over those of halving the step size."""
  problem = theory.power_law(1e6, 1.5, 2.0, 1.0, nodes=4)
  eta = 0.22 if normalised else 0.25 * theory.eta_max(problem, 8)
  base = _phase_risks(problem, _phases(eta, 2.0, 1.0), normalised)
  ratio = _phase_risks(problem, _phases(eta, a, b), normalised) / base
  return ratio.max(), ratio[-1]


def seesaw_normalised():
  """Seesaw, (sqrt 2, 2), for normalised SGD."""
  worst, last = _ramp(True, 2**0.5, 2.0)
  return (
    "NSGD: equal a sqrt(b) (Seesaw)",
    "2510.14717",
    "<= 1.05",
    (f"{worst:.3f} worst, {last:.3f} last"),
    worst <= 1.05,
  )


def seesaw_sgd():
  """Equal a b for plain SGD."""
  one, two = _ramp(False, 2**0.5, 2**0.5)[0], _ramp(False, 1.0, 2.0)[0]
  return (
    "SGD: equal a b",
    "2510.14717",
    "<= 1.07",
    (f"{one:.3f}, {two:.3f}"),
    max(one, two) <= 1.07,
  )


def seesaw_boundary():
  """Beyond a = sqrt b the equivalence fails."""
  worst, _ = _ramp(True, 1.0, 4.0)
  return (
    "a >= sqrt(b) is needed",
    "2510.14717",
    "> 2 at (1, 4)",
    (f"{worst:.2f}"),
    worst > 2,
  )


def serial_steps():
  """Serial steps saved when a quarter cosine becomes a ramp."""
  T = 100_000
  eta = theory.quarter_cosine(1.0, T)
  stages = theory.discretise(theory.schedule(eta, 64), 1.01)
  saved = 1 - theory.serial_fraction(stages, theory.seesaw(stages, 2.0))
  want = 1 - 2 / np.pi
  return (
    "serial steps saved, quarter cosine",
    "2510.14717",
    (f"1 - 2/pi = {want:.4f}"),
    f"{saved:.4f}",
    abs(saved - want) < 3e-3,
  )


def _critical(a, b, batches, d=1e5, samples=None, low=3e-4):
  problem = theory.power_law(d, a, b, 0.25, nodes=4)
  samples = np.logspace(4.5, 6.3, 13) if samples is None else samples
  etas = theory.eta_grid(problem, batches, 24, low)
  table = theory.risk_table(problem, etas, batches, samples)
  return samples, theory.critical_batch(table, batches, samples)


def critical_batch_grows():
  """Exponent of the critical batch in the data, 1 - a/b."""
  ours, want = [], []
  for a, b, top in ((1.5, 3.0, 4.3), (1.5, 2.0, 3.0), (2.0, 1.5, 1.2)):
    samples, critical = _critical(a, b, np.logspace(0, top, 15))
    seen = np.isfinite(critical) & (samples <= 5.5e5)
    ours.append(np.polyfit(np.log(samples[seen]), np.log(critical[seen]), 1)[0])
    want.append(max(1 - a / b, 0.0))
  return (
    "CBS grows as D^(1 - a/b)",
    "2410.21676",
    _list(want),
    _list(ours),
    (np.abs(np.subtract(ours, want)).max() < 0.08),
  )


def critical_batch_flat():
  """The critical batch does not depend on the width."""
  samples = 1.7e5 * np.logspace(0, 0.3, 3)
  batches = np.logspace(1.5, 4, 15)
  found = [
    _critical(1.5, 3.0, batches, d, samples)[1][0] for d in (100, 1e3, 1e5)
  ]
  return (
    "CBS is flat in width",
    "2410.21676",
    "flat for d >= 100",
    (_list(found, 0)),
    max(found) / min(found) < 1.1,
  )


def critical_batch_law():
  """Fit of the published batches at five model sizes."""
  published = [745.3, 955.2, 1393.7, 1888.5, 2533.4]
  fit = theory.cbs_law([85, 151, 302, 604, 1200], published).params
  return (
    "CBS(N) at Chinchilla tokens",
    "2410.21676",
    "93.20 N^.4683",
    (f"{fit['k']:.2f} N^{fit['p']:.4f}"),
    abs(fit["k"] - 93.2) < 0.1,
  )


def identities():
  """ASGD at its gradient point is decoupled momentum."""
  problem = theory.power_law(50, 1.5, 2.0, 0.3, nodes=None)
  al, be, ga, de, T = 0.6, 0.2, 0.3, 0.1, 500
  asgd = theory.asgd(al, be, ga, de)
  eta = (1 - al) * (ga - de)
  twin = theory.decoupled(eta, al * (1 - be), de / eta)
  one = theory.method_scan(problem, asgd._replace(h=asgd.e), 2, T).total
  error = np.abs(theory.method_scan(problem, twin, 2, T).total / one - 1).max()
  return (
    "ASGD = Simplified-AdEMAMix",
    "2502.02431",
    "identity",
    (f"{error:.1e}"),
    error < 1e-12,
  )


def momentum():
  """Best heavy ball over best SGD, linear decay, 2^17 samples."""
  problem = theory.power_law(1e5, 1.5, 2.0, 0.1, nodes=4)

  def final(batch, peaks, beta):
    T = 2**17 // batch
    decay = theory.linear(1.0, T)

    def one(peak):
      method = theory.heavy_ball(peak * (1 - beta) * decay, beta)
      return theory.method_scan(problem, method, float(batch), T).total[-1]

    with theory.float64():
      return np.nanmin(np.asarray(jax.jit(jax.vmap(one))(peaks)))

  ratios = []
  for batch in (8, 512):
    peaks = theory.eta_max(problem, batch) * np.logspace(-1.5, 1.8, 23)
    best = min(final(batch, peaks, beta) for beta in (0.5, 0.9, 0.95, 0.97))
    ratios.append(best / final(batch, peaks, 0.0))
  return (
    "momentum helps at large batch only",
    "2502.02431",
    ("~1 at B=8, ~.2 at B=512"),
    _list(ratios, 2),
    ratios[0] > 0.9 and ratios[1] < 0.35,
  )


def adam_is_gauss_newton():
  """Spread of Adam's preconditioner over lam^-1/2 at batch 1."""
  problem = theory.power_law(1000, 1.5, 2.0, 1.0, nodes=None)
  z, lam, eta = problem.m0, problem.lam, 5e-3
  for _ in range(2000):
    p = (2 * lam**2 * z + lam * (z @ lam + 1)) ** -0.5
    z = (1 - 2 * eta * p * lam) * z + eta**2
  spread = np.ptp(np.log(p * lam**0.5))
  return (
    "Adam ~ GN^-1/2 at small batch",
    "2510.13680",
    "flat ratio",
    (f"max/min {np.exp(spread):.3f}"),
    spread < 0.02,
  )


def wsd_is_near_optimal():
  """Best WSD over the optimal schedule for a hard task, by gradient."""
  T, knots = 4096, 40
  problem = theory.power_law(1e4, 2.0, 1.3, 1.0, nodes=5, head=16)
  cap = 0.5 * theory.eta_max(problem, 1)
  grid = np.linspace(0, T - 1, knots)

  def log_risk(x):
    eta = cap * jax.nn.sigmoid(jnp.interp(jnp.arange(T), grid, x))
    schedule = theory.Schedule(eta, jnp.ones(T))
    return jnp.log(theory.final_risk(problem, schedule).total)

  with theory.float64():
    pair = jax.jit(jax.value_and_grad(log_risk))
    found = optimize.minimize(
      lambda x: tuple(np.asarray(v, float) for v in pair(x)),
      np.linspace(4, -2, knots),
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": 400},
    )
  shape = theory.schedule(theory.wsd(cap, T, 0.2), 1)
  ratio = theory.final_risk(problem, shape).total / np.exp(found.fun)
  return (
    "WSD near optimal for hard tasks",
    "2602.06797",
    "~1",
    (f"{ratio:.3f} x optimum"),
    ratio < 1.03,
  )


def loss_to_loss():
  """The estimator on exact pairs; the published data are not shipped."""
  x = np.linspace(2.5, 4, 40)
  fit = theory.shifted_power(x, 1.2 + 0.9858 * (x - 1.9) ** 0.9994)
  return (
    "loss-to-loss kappa, K (planted)",
    "2411.12925",
    ".9994, .9858",
    (f"{fit.params['kappa']:.4f}, {fit.params['K']:.4f}"),
    abs(fit.params["kappa"] - 0.9994) < 1e-3,
  )


def chinchilla():
  """The estimator on exact losses; the published data are not shipped."""
  N, D = (
    x.ravel() for x in np.meshgrid(np.logspace(7, 9, 9), np.logspace(9, 11, 9))
  )
  L = 2.4913 + 1437.6 * N**-0.42064 + 9950 * D**-0.46879
  p = theory.chinchilla(N, D, L).params
  return (
    "Chinchilla fit (planted)",
    "2411.12925 data",
    ("1437.6 9950 2.4913 .42064 .46879"),
    " ".join(f"{p[k]:.5g}" for k in ("A", "B", "E", "alpha", "beta")),
    (abs(p["A"] / 1437.6 - 1) < 1e-3),
  )


def _list(values, digits=3):
  return ", ".join(f"{v:.{digits}f}" for v in values)


CLAIMS = [
  exact_recursion, closed_form, anytime_optimal, anytime_constant,
  seesaw_normalised, seesaw_sgd, seesaw_boundary, serial_steps,
  critical_batch_grows, critical_batch_flat, critical_batch_law, identities,
  momentum, adam_is_gauss_newton, noiseless, wsd_is_near_optimal,
  loss_to_loss, chinchilla,
]  # fmt: skip


def main():
  """Prints the table."""
  print(f"{'claim':<37}{'source':<17}{'to compare':<34}ours")
  for claim in CLAIMS:
    name, source, want, ours, good = claim()
    mark = "" if good else "  DIFFERS"
    print(f"{name:<37}{source:<17}{want:<34}{ours}{mark}", flush=True)


if __name__ == "__main__":
  main()
