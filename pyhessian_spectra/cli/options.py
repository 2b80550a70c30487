"""The options of the commands; those of an analysis are made from the fields of ``Settings``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyhessian_spectra.spectra.settings import Settings

_UNITS = {"": 1, "B": 1, "K": 2**10, "KB": 2**10, "KIB": 2**10, "M": 2**20, "MB": 2**20, "MIB": 2**20}
_UNITS |= {"G": 2**30, "GB": 2**30, "GIB": 2**30, "T": 2**40, "TB": 2**40, "TIB": 2**40}


class Bytes(click.ParamType):
    """A number of bytes with a unit, such as ``512MiB`` or ``4GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is not a size; write it as 512MiB or 4GiB")
        return int(float(match[1]) * _UNITS[match[2].upper()])


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one, the first outermost."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _from_field(field: dataclasses.Field) -> Callable[[Any], Any]:
    """The option of one setting."""
    kind: click.ParamType
    minimum = field.metadata["minimum"]
    if field.metadata["choices"]:
        kind = click.Choice(field.metadata["choices"])
    elif field.name == "memory_budget":
        kind = Bytes()
    elif isinstance(field.default, float):
        kind = click.FloatRange(min=minimum)
    else:
        kind = click.IntRange(min=minimum)
    return click.option(
        f"--{field.name.replace('_', '-')}",
        type=kind,
        default=field.default,
        show_default=field.default is not None,
        help=field.metadata["help"],
    )


seed = click.option("--seed", default=0, show_default=True, type=int, help="Seed of the random probes.")

checkpoints = click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT...")

problem = together(
    click.option("--problem", metavar="MODULE:FUNCTION", help="Your own factory: checkpoint path -> EmpiricalRisk."),
    click.option("--model", help="A built-in architecture: mlp, lenet, resnet20, ..., vgg11_bn, resnet18, lstm, gpt."),
    click.option("--model-arg", "model_args", multiple=True, metavar="KEY=VALUE", help="What shapes do not tell."),
    click.option("--data", help="digits, or a path: an MNIST or CIFAR-10 directory, an .npz, a text file."),
    click.option("--loss", help="cross_entropy or mse; by default what the targets call for."),
    click.option("--split", type=click.Choice(["train", "test"]), help="Part of the data; default train."),
    click.option("--num-examples", type=click.IntRange(min=1), help="The first N examples only."),
    click.option("--normalize/--no-normalize", default=None, help="Standardise the inputs; default yes."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), help="Examples in a batch; default a tenth of all examples."
    ),
    click.option(
        "--mode",
        type=click.Choice(["eval", "train"]),
        help="Whether BatchNorm uses its running statistics (eval, the default) or the batch's (train).",
    ),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Precision of products; default float32."),
    click.option("--device", help="Default cpu."),
    click.option("--params", multiple=True, metavar="GLOB", help="Restrict the matrix to these parameters."),
    click.option("--trust-pickle", is_flag=True, help="Unpickle a checkpoint, which runs the code it holds."),
)

analysis = together(
    click.option(
        "--matrix",
        default="hessian",
        show_default=True,
        type=click.Choice(["hessian", "ggn", "residual", "fisher"]),
        help="The Hessian H, its Gauss-Newton matrix G, the residual H - G, or the empirical Fisher matrix.",
    ),
    *(_from_field(field) for field in dataclasses.fields(Settings)),
    click.option(
        "--layers",
        multiple=True,
        metavar="GLOB",
        help="Modules whose blocks are analysed; 'all' or 'none'; default those with weights.",
    ),
    seed,
)

out = together(
    click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the report goes."),
    click.option("--force", is_flag=True, help="Replace a report that is there already."),
    click.option("--fresh", is_flag=True, help="Compute anew what a run that was interrupted has kept."),
)
