"""Directives that let the code describe itself, so that the pages cannot fall behind it.

``.. command:: report`` lists the arguments and options of a subcommand; ``.. results-fields::`` lists every field of
``results.json`` from its JSON Schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyhessian_spectra.cli.main import commands
from pyhessian_spectra.report import results_schema

# Where in results.json a definition of the schema is used, as a reader would write it.
_PLACES = {
    "analysis": "",
    "problem": "problem",
    "block": "full, and each entry of layers",
    "pairs": "entries of largest and smallest",
    "estimate": "trace and frobenius",
    "timing": "timing",
}
_ARGUMENTS = {
    "checkpoints": "One or more checkpoints of one network, in the order of training.",
    "arguments": "Checkpoints, quoted patterns of them, folders of results, and CSVs of runs with a column ``path``.",
}
_UNITS = {"eigenvalue": "loss", "residual": "loss", "seconds": "s", "seconds_per_product": "s"}
_UNITS |= {"seconds_per_gradient": "s", "n": "parameters", "N": "examples", "num_atoms": "eigenvalues"}
_UNITS |= {"num_products": "products", "value": "loss", "stderr": "loss"}
_UNITS |= {"lower": "loss", "upper": "loss", "others": "loss", "interval95": "loss"}


class CommandDirective(SphinxDirective):
    """Usage and options of one subcommand."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = commands.commands[self.arguments[0]]
        context = click.Context(command, info_name=f"pyhessian-spectra {command.name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines = [str(command.help), "", ".. code-block:: console", "", f"   $ {usage}", ""]
        for parameter in command.params:
            names, text = parameter.get_help_record(context) or (
                parameter.make_metavar(context),
                _ARGUMENTS[str(parameter.name)],
            )
            lines += [f"``{names}``", f"   {text}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


class ResultsFieldsDirective(SphinxDirective):
    """One table for each kind of object in ``results.json``."""

    def run(self) -> list[nodes.Node]:
        schema = results_schema()
        lines: list[str] = []
        for name, definition in schema["$defs"].items():
            body = definition.get("items", definition)
            if "properties" not in body:
                continue
            place = _PLACES.get(name, name)
            title = f"``{place}``" if place and " " not in place else (place or "One analysis")
            lines += [title, '"' * len(title), "", definition.get("description", ""), ""]
            lines += list(_table(body["properties"], set(body.get("required", ())), schema["$defs"]))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _table(properties: Mapping[str, Any], required: set[str], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "   :widths: 24 14 14 48", "   :class: results-fields", "")
    yield from _row(("Field", "Type", "Unit", "Meaning"))
    for name, field in properties.items():
        referred = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        meaning = field.get("description") or referred.get("description", "")
        optional = "" if name in required else " Not always there."
        yield from _row((f"``{name}``", _type_of(field), _UNITS.get(name, ""), meaning + optional))
    yield ""


def _row(cells: Iterable[str]) -> Iterator[str]:
    for index, cell in enumerate(cells):
        yield f"   {'*' if index == 0 else ' '} - {cell}".rstrip()


def _type_of(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "list" if name == "pairs" else "object"
    if "enum" in field:
        return " or ".join(f"``{value}``" for value in field["enum"])
    if "const" in field:
        return f"``{field['const']}``"
    kind = field.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else ("list" if kind == "array" else kind)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command", CommandDirective)
    app.add_directive("results-fields", ResultsFieldsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
