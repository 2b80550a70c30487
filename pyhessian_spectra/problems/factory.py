"""load_problem: from a checkpoint and a few words to the risk whose curvature is analysed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures import (
    build_model,
    canonical_name,
    describe_arguments,
    find_architecture,
)
from pyhessian_spectra.problems.checkpoints import Checkpoint, hash_file, read_checkpoint
from pyhessian_spectra.problems.datasets import Dataset, load_data
from pyhessian_spectra.problems.fitting import check_finite
from pyhessian_spectra.problems.inputs import arrange_inputs, guess_kind
from pyhessian_spectra.problems.losses import find_loss
from pyhessian_spectra.problems.user_factory import call_user_factory

# Larger data are cut into batches of about this many input elements, so that activations of a deep network fit in
# memory: 500 CIFAR images, 2,000 of MNIST, all of the digits.
_BATCH_ELEMENTS = 1_600_000
# As few as tell the sampling error from the differences between them: it is then known to a quarter of itself.
_FEWEST_BATCHES = 10
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Problem:
    """A risk and what the report says about it.

    Parameters
    ----------
    risk : EmpiricalRisk
    description : dict
        JSON scalars: ``checkpoint``, ``sha256``, ``model``, ``data``, ``N``, ``n``, ``loss``, ``mode``, ``dtype``,
        ``device``; ``model_args`` and ``data_description`` for built-ins; and the checkpoint's own facts.
    """

    risk: EmpiricalRisk
    description: dict[str, Any]


def load_problem(
    checkpoint_path: str | os.PathLike[str],
    *,
    problem: str | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    loss: str | None = None,
    split: str | None = None,
    num_examples: int | None = None,
    normalize: bool | None = None,
    batch_size: int | None = None,
    mode: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    params: str | Sequence[str] | None = None,
    trust_pickle: bool = False,
) -> Problem:
    """Build the problem that a checkpoint belongs to.

    Parameters
    ----------
    checkpoint_path : path-like
    problem : str, optional
        ``package.module:function``, called with the path and returning an EmpiricalRisk. It decides on everything
        but ``params``, so that no other option may be given with it.
    model, data, loss : str, optional
        Names of built-ins, as in ``build_model``, ``load_data`` and ``LOSSES``. They override what a
        self-describing checkpoint says. A pickled module needs no ``model``. The loss defaults to
        ``cross_entropy`` for classes and tokens, and to ``mse`` for float targets.
    model_args : mapping, optional
        What the checkpoint's shapes do not tell, such as ``{"activation": "tanh"}`` or ``{"heads": 8}``.
    split, num_examples, normalize : optional
        As in ``load_data``; default the whole training part, standardised.
    batch_size : int, optional
        Default a tenth of the examples (all of them in train mode, where BatchNorm's statistics are of the batch), but
        no more than have about 1.6 million input elements.
    mode : {"eval", "train"}, optional
        Whether BatchNorm uses its running (eval, the default) or the batch's (train) statistics.
    dtype : {"float32", "float64"}, optional
        Of parameters, data and products; default ``float32``.
    device : str, optional
        As ``torch.device`` takes it; default ``cpu``.
    params : str or sequence of str, optional
        Names or globs of the parameters to restrict the analysis to.
    trust_pickle : bool
        As in ``read_checkpoint``.

    Returns
    -------
    Problem

    Raises
    ------
    InputError
        Anything about the checkpoint, the options or the data that does not fit together, in one sentence.
    """
    if problem is not None:
        _refuse_with_problem(
            model=model,
            model_args=model_args,
            data=data,
            loss=loss,
            split=split,
            num_examples=num_examples,
            normalize=normalize,
            batch_size=batch_size,
            mode=mode,
            dtype=dtype,
            device=device,
        )
        return _from_user(checkpoint_path, problem, params)
    precision, target_device = _find_dtype(dtype or "float32"), _find_device(device or "cpu")
    checkpoint = read_checkpoint(checkpoint_path, trust_pickle=trust_pickle)
    data = data or checkpoint.problem.get("data")
    if data is None:
        raise InputError(
            f"{checkpoint.path} does not say which data it was trained on; give --data (digits, a directory or a file) "
            "or --problem package.module:function"
        )
    network, name, arguments = _find_model(checkpoint, model, model_args)
    dataset = load_data(
        data,
        split=split or "train",  # type: ignore[arg-type]
        num_examples=num_examples,
        normalize=normalize is not False,
        block_size=getattr(network, "block_size", 64),
    )
    kind = find_architecture(name).inputs if arguments is not None else guess_kind(network, dataset.inputs)
    inputs = arrange_inputs(dataset.inputs, kind) if kind else dataset.inputs
    usual_loss = "mse" if dataset.targets.is_floating_point() else "cross_entropy"
    loss_name = loss or checkpoint.problem.get("loss") or usual_loss
    loss_fn = find_loss(loss_name)
    network = network.eval().to(precision)
    _try_one(network, name, inputs, dataset, loss_name, precision)
    network = network.to(target_device)
    risk = EmpiricalRisk(
        network,
        loss_fn,
        _batches(inputs, dataset.targets, batch_size, mode, precision, target_device),
        params=params,
        mode=mode or "eval",
    )
    description = checkpoint.metadata | {
        "checkpoint": os.fspath(checkpoint_path),
        "sha256": checkpoint.sha256,
        "model": name,
        "data": str(data),
        "data_description": dataset.description,
        "loss": loss_fn.__name__,
        **_describe_risk(risk),
    }
    if arguments:
        description["model_args"] = describe_arguments(arguments)
    return Problem(risk, description)


def _from_user(path: str | os.PathLike[str], spec: str, params: str | Sequence[str] | None) -> Problem:
    if not Path(path).exists():
        raise InputError(f"there is no checkpoint at {os.fspath(path)}; check the path")
    risk = call_user_factory(spec, path)
    if params is not None:
        risk = risk.restrict(params)
    description = {
        "checkpoint": os.fspath(path),
        "sha256": None if Path(path).is_dir() else hash_file(path),
        "model": type(risk.model).__name__,
        "data": spec,
        "loss": getattr(risk.loss_fn, "__name__", type(risk.loss_fn).__name__),
        **_describe_risk(risk),
    }
    return Problem(risk, description)


def _describe_risk(risk: EmpiricalRisk) -> dict[str, Any]:
    return {
        "N": risk.num_examples,
        "n": risk.n,
        "mode": risk.mode,
        "dtype": str(risk.dtype).removeprefix("torch."),
        "device": str(risk.device),
    }


def _refuse_with_problem(**options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{given[0]} cannot be given together with problem: the function builds the model, the data and the loss "
            "itself"
        )


def _find_model(
    checkpoint: Checkpoint, model: str | None, model_args: Mapping[str, Any] | None
) -> tuple[nn.Module, str, dict[str, Any] | None]:
    """The network, its name, and the arguments of a built-in one (None for a pickled module)."""
    described = checkpoint.problem.get("model")
    if model is None and described is None:
        if checkpoint.module is None:
            raise InputError(
                f"{checkpoint.path} does not say which model it belongs to; give --model or "
                "--problem package.module:function"
            )
        check_finite(checkpoint)
        return checkpoint.module, type(checkpoint.module).__name__, None
    name = canonical_name(model or str(described))
    same = described is not None and name == canonical_name(described)
    known = dict(checkpoint.problem.get("model_args") or {}) if same else {}
    network, arguments = build_model(name, checkpoint, model_args=known | dict(model_args or {}))
    return network, name, arguments


def _find_dtype(name: str) -> torch.dtype:
    try:
        return _DTYPES[name]
    except KeyError:
        raise InputError(f"dtype must be float32 or float64, got {name!r}; spectra in less mean nothing") from None


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {name!r} cannot be used here ({reason}); use cpu") from None
    return device


def _batches(
    inputs: Tensor, targets: Tensor, batch_size: int | None, mode: str | None, dtype: torch.dtype, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    fitting = max(1, _BATCH_ELEMENTS // max(1, inputs[0].numel()))
    size = batch_size or min(fitting, -(-len(inputs) // (1 if mode == "train" else _FEWEST_BATCHES)))
    inputs, targets = (t.to(device, dtype if t.is_floating_point() else None) for t in (inputs, targets))
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def _try_one(network: nn.Module, name: str, inputs: Tensor, dataset: Dataset, loss: str, dtype: torch.dtype) -> None:
    """Run the first example, so that data which do not fit the model are told before anything long starts."""
    first = inputs[:1].to(dtype) if inputs.is_floating_point() else inputs[:1]
    shape = tuple(dataset.inputs.shape[1:])
    try:
        with torch.no_grad():
            outputs = network(first)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"the model {name} cannot take inputs of shape {shape} ({dataset.name}): {reason}") from error
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the model {name} returns a {type(outputs).__name__}, not a tensor; use --problem to unpack it"
        )
    targets = dataset.targets
    if targets.is_floating_point():
        if loss != "mse" or outputs.shape[1:] != targets.shape[1:]:
            raise InputError(
                f"the targets of {dataset.name} are floats of shape {tuple(targets.shape[1:])}; that takes the loss "
                f"mse and outputs of that shape, not {loss} and {tuple(outputs.shape[1:])}"
            )
        return
    if outputs.ndim < 2 or outputs.shape[1:-1] != targets.shape[1:]:
        raise InputError(
            f"the model {name} gives outputs of shape {tuple(outputs.shape[1:])} for targets of shape "
            f"{tuple(targets.shape[1:])}; expected one row of class scores for each target"
        )
    outside = (targets >= outputs.shape[-1]).flatten(1) if targets.ndim > 1 else targets >= outputs.shape[-1]
    if outside.any():
        index = int(outside.reshape(len(targets), -1).any(dim=1).to(torch.uint8).argmax())
        value = int(targets[index].max())
        raise InputError(
            f"label {index} of {dataset.name} is {value}, outside the {outputs.shape[-1]} classes of the model {name}"
        )
