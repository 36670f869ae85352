"""Sphinx with MyST: Markdown all through. Warnings are errors (`nox -s docs`); tests/docs runs the snippets."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "trio_sched"
copyright = "the trio_sched authors"  # noqa: A001  # Sphinx reads this name
release = installed_version("trio_sched")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"trio_sched {release}"
autodoc_typehints = "signature"
