"""What every page is made of: figures that follow the reader's colours, templates, and files written whole."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from importlib.resources import files
from operator import methodcaller
from pathlib import Path
from typing import cast

import jinja2
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyhessian_spectra import plots
from pyhessian_spectra._version import __version__
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.files import write_whole
from pyhessian_spectra.plots.style import BLUE, GRID, INK, MUTED

# A dark page replaces the inks by these colours. The other colours are legible on both.
_DARK = {INK: "#e6e9ed", MUTED: "#a3acb6", GRID: "#363c45", BLUE: "#4da6e0"}


def make_figures(
    axes: Mapping[str, Axes], alts: Mapping[str, str], *, prefix: str = "", suffix: str = ""
) -> dict[str, dict[str, str]]:
    """Return figures by role: the path and content of the file, what it shows, and a URI that holds it in the page."""
    figures = {}
    for role, ax in axes.items():
        alt, buffer = alts[role] + suffix, io.StringIO()
        with plots.theme():
            cast(Figure, ax.figure).savefig(buffer, format="svg", metadata={"Date": None, "Title": alt})
        # In the page inks are CSS variables, which a dark page redefines; plain viewers read the file instead.
        svg = adaptive = buffer.getvalue()
        light = dark = ""
        for index, (ink, color) in enumerate(_DARK.items()):
            adaptive = adaptive.replace(ink, f"var(--ink-{index})")
            light += f"--ink-{index}:{ink};"
            dark += f"--ink-{index}:{color};"
        rules = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
        embedded = base64.b64encode(adaptive.replace("<defs>", f"{rules}<defs>", 1).encode()).decode()
        path = f"figures/{prefix}{role.replace('_', '-')}.svg"
        figures[role] = {"path": path, "svg": svg, "alt": alt, "data_uri": f"data:image/svg+xml;base64,{embedded}"}
    return figures


def render(template: str, **content: object) -> str:
    """Return the page that a template makes of this content, with the style sheet, and nothing from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyhessian_spectra.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = files("pyhessian_spectra.report").joinpath("report.css").read_text(encoding="utf-8")
    # The page may apply this one style sheet and show images it holds itself: nothing else, whatever a name contains.
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template(template).render(css=Markup(css), policy=policy, version=__version__, **content)


def write_texts(out_dir: Path, texts: Mapping[str, str], *, figure_names: re.Pattern[str]) -> None:
    """Write texts to the paths that name them, and remove figures of an earlier page that no longer belong.

    Raises InputError where ``out_dir`` cannot be written.
    """
    try:
        for path, text in texts.items():
            write_whole(out_dir / path, methodcaller("write", text.encode()))
        for old in (out_dir / "figures").iterdir():
            if figure_names.fullmatch(old.name) and f"figures/{old.name}" not in texts and old.is_file():
                old.unlink()
    except OSError as error:
        raise InputError(f"the report cannot be written to {out_dir}: {error}; choose another directory") from None
