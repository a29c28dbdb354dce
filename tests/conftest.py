"""Eight CPU devices, one compilation cache, and no surprise at import."""

import os
import pathlib

import hypothesis

# Without LLVM's optimisations a test compiles in less time than it wins by
# them; the programs, and the HLO that is counted, are the same.
_FLAGS = (
  os.environ.get("XLA_FLAGS", ""),
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
)
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of the devices' pool: each collective that waits holds one.
os.environ.setdefault("NPROC", "64")
# What is compiled is kept between runs.
_ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A slow machine is no wrong program: no example has a deadline.
hypothesis.settings.register_profile(
  "untimed",
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")
