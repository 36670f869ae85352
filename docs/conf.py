"""Sphinx with MyST: Markdown pages, and API pages from docstrings by autodoc.

`nox -s docs` builds the pages, and each warning is an error. The tests in tests/docs run the snippets.
"""

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
default_role = "literal"  # docstrings write `name`, as Markdown does
add_module_names = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "exclude-members": "__new__, __init__"}
maximum_signature_line_length = 100
