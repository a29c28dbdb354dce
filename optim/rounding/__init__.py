"""Numbers to grids of few bits: grids, scales, rounding. No training."""
