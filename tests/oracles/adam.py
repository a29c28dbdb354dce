"""Adam in NumPy float64, from Kingma and Ba's algorithm 1."""

import numpy as np


def adam_directions(grads, b1, b2, eps, bias_correction=True):
  """m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) for t = 1, 2, ..."""
  m = v = np.zeros_like(np.asarray(grads[0], np.float64))
  directions = []
  for t, g in enumerate(grads, 1):
    g = np.asarray(g, np.float64)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    c1, c2 = (1 - b1**t, 1 - b2**t) if bias_correction else (1.0, 1.0)
    directions.append(m / c1 / (np.sqrt(v / c2) + eps))
  return directions
