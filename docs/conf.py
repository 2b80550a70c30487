"""Sphinx settings. Nothing here, and nothing in a build, asks anything of a network."""

import sys
from pathlib import Path

_here = Path(__file__).parent
sys.path[:0] = [str(_here.parent), str(_here / "_ext")]

from pyhessian_spectra import __version__  # noqa: E402  (the path must be set first)

project = "pyhessian_spectra"
author = "The pyhessian_spectra authors"
project_copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "from_code",  # docs/_ext: the command line and results.json, described by the code itself
    "mathml",  # docs/_ext: formulas as MathML, where MathJax would be fetched by each reader
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "results"]
templates_path = ["_templates"]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings say shapes and units, which types do not
autodoc_member_order = "bysource"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

# The button copies what follows a prompt, and of blocks without prompts everything; a bare "..." becomes the empty line
# that ends a block of Python.
copybutton_prompt_text = r">>> ?|\.\.\. ?|\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"pyhessian_spectra {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
