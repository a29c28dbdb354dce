"""Metadata and packages; the tools' settings are in pyproject.toml."""

import pathlib

import setuptools

_PACKAGES = ("lm", "optim", "theory", "ml_collections_configs")
_CORPUS = ["sotu-placeholder"]

setuptools.setup()
