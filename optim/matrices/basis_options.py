"""Options that methods with eigenbases share."""

import dataclasses
from typing import Literal, get_args

from ..common import checks
from .kl_factors import Eigenvalues
from .options import MatrixOptions

RefreshMethod = Literal["qr", "cholesky", "eigh"]


@dataclasses.dataclass(frozen=True, eq=False)
class BasisOptions(MatrixOptions):
  """Options of a method that works in the eigenbases of its factors.

  Attributes:
    refresh: "qr" (one power iteration, orthonormalised by Householder),
      "cholesky" (the same by matrix products), or "eigh" (eigenvectors anew).
    refresh_steps: Power iterations of a refresh by "qr" or "cholesky"; None is
      one.
    eigenvalues: How KL factors keep their eigenvalues; see `Eigenvalues`.
    update_rms: r: each matrix's U is scaled to root mean square r at every
      step. None: it is not. Leaves without a factor are not scaled.
    max_update_rms: r: each matrix's U is scaled by min(1, r / (rms(U) + 1e-7)).
      None: it is not. Leaves without a factor are not scaled.
  """

  _: dataclasses.KW_ONLY
  refresh: RefreshMethod = "qr"
  refresh_steps: int | None = None
  eigenvalues: Eigenvalues = Eigenvalues()
  update_rms: float | None = None
  max_update_rms: float | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    checks.choice("refresh", self.refresh, get_args(RefreshMethod))
    if self.refresh_steps is not None:
      checks.count("refresh_steps", self.refresh_steps)
      if self.refresh == "eigh":
        raise ValueError(
          f"refresh_steps={self.refresh_steps} counts power iterations, and "
          "refresh='eigh' makes none; leave it None, or take refresh='qr'."
        )
    checks.instance("eigenvalues", self.eigenvalues, Eigenvalues)
    self.eigenvalues.check()
    for name in ("update_rms", "max_update_rms"):
      if getattr(self, name) is not None:
        checks.positive(name, getattr(self, name))
