"""load_problem: from a checkpoint and a few words to the risk whose curvature is analysed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures import build_model, describe_arguments
from pyhessian_spectra.problems.checkpoints import Checkpoint, check_finite, hash_file, left_out, read_checkpoint
from pyhessian_spectra.problems.datasets import Dataset, load_data
from pyhessian_spectra.problems.datasets.dataset import check_labels
from pyhessian_spectra.problems.datasets.sequences import Sequences, load_sequences
from pyhessian_spectra.problems.inputs import arrange_inputs
from pyhessian_spectra.problems.losses import IGNORED, LOSSES
from pyhessian_spectra.problems.names import canonical_name, find_builtin
from pyhessian_spectra.problems.user_factory import call_user_factory

# Larger data are cut into batches of about this many elements of inputs or of outputs, so that activations of a deep
# network fit in memory: 500 CIFAR images, 2,000 of MNIST, all of the digits.
_BATCH_ELEMENTS = 1_600_000
# As few as tell the sampling error from the differences between them: it is then known to a quarter of itself.
_FEWEST_BATCHES = 10
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Facts that the analysis itself adds to the description have these names.
_TAKEN = (
    "seed", "matrix", "tol", "verified", "num_batches", "reduction", "split", "data_description", "model_args",
    "left_out", "label", "data_digest", "loss_digest",
)  # fmt: skip
# Arguments of load_problem that may be given together with problem; a user's factory decides on all others.
_BESIDE_PROBLEM = ("checkpoint_path", "problem", "params", "trust_pickle")


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
    prefix: str | None = None,
    trust_pickle: bool = False,
) -> Problem:
    """Build the problem that a checkpoint belongs to.

    Parameters
    ----------
    checkpoint_path : path-like
        A file, or a folder of Hugging Face: see ``read_checkpoint``. A language model's loss is the mean over the next
        tokens, as transformers has it; ``data`` is then a text, or an ``.npz`` with ``input_ids``, ``labels`` and
        ``attention_mask``.
    problem : str, optional
        ``package.module:function``, called with the path and returning an EmpiricalRisk. It decides on everything
        but ``params``, so that no other option may be given with it.
    model, data, loss : str, optional
        ``model`` names a built-in, ``data`` is what ``load_data`` takes, ``loss`` is ``cross_entropy`` or ``mse``.
        They override what a self-describing checkpoint says. A pickled module needs no ``model``. The loss defaults to
        ``cross_entropy`` for classes and tokens, and to ``mse`` for float targets.
    model_args : mapping, optional
        What the checkpoint's shapes do not tell, such as ``{"activation": "tanh"}`` or ``{"heads": 8}``. Of a folder,
        only ``block_size``, the number of tokens in a block of a text.
    split, num_examples, normalize : optional
        As in ``load_data``; default the whole training part, standardised.
    batch_size : int, optional
        Default a tenth of the examples (all of them in train mode, where BatchNorm's statistics are of the batch), but
        no more than have about 1.6 million elements of inputs or of outputs.
    mode : {"eval", "train"}, optional
        Whether BatchNorm uses its running (eval, the default) or the batch's (train) statistics.
    dtype : {"float32", "float64"}, optional
        Parameters, data and products have it; default ``float32``.
    device : str, optional
        As ``torch.device`` takes it; default ``cpu``.
    params : str or sequence of str, optional
        Names or globs of the parameters to restrict the analysis to.
    prefix : str, optional
        What the names of the network's tensors begin with in the file, where that is not found without it.
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
    # Before anything else is named: the local variables still are the arguments.
    given = [name for name, value in locals().items() if value is not None and name not in _BESIDE_PROBLEM]
    path = os.fspath(checkpoint_path)
    if problem is not None:
        if given:
            reason = "the function builds the model, the data and the loss itself"
            raise InputError(f"{given[0]} cannot be given together with problem: {reason}")
        sha256 = None if os.path.isdir(path) else hash_file(path)
        facts = _facts_of(path, trust_pickle)
        risk = call_user_factory(problem, path)
        risk = risk if params is None else risk.restrict(params)
        return Problem(risk, _joined(facts, _describe(risk, path, sha256, type(risk.model).__name__, problem)))
    if dtype not in (None, *_DTYPES):
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}; spectra in less mean nothing")
    precision, target_device = _DTYPES[dtype or "float32"], _find_device(device or "cpu")
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, prefix=prefix)
    data = data or checkpoint.problem.get("data")
    if data is None:
        needed = "give --data (digits, a directory or a file) or --problem package.module:function"
        raise InputError(f"{checkpoint.path} does not say which data it was trained on; {needed}")
    network, name, arguments = _find_model(checkpoint, model, model_args)
    dataset: Dataset | Sequences
    if checkpoint.folder is None:
        dataset = load_data(
            data,
            split=split or "train",  # type: ignore[arg-type]
            num_examples=num_examples,
            normalize=normalize is not False,
            block_size=getattr(network, "block_size", 64),
        )
        inputs: Any = arrange_inputs(dataset.inputs, network)
    else:
        block_size = _block_size(model_args)
        dataset = load_sequences(
            data, checkpoint.folder, split=split or "train", num_examples=num_examples, block_size=block_size
        )
        inputs = dataset.inputs
    inputs, targets = tree_map(lambda t: t.to(precision) if t.is_floating_point() else t, (inputs, dataset.targets))
    usual_loss = "mse" if targets.is_floating_point() else "cross_entropy"
    loss_fn = find_builtin("loss", loss or checkpoint.problem.get("loss") or usual_loss, LOSSES)
    network = network.eval().to(precision)
    outputs = _try_one(network, name, inputs, dataset, loss_fn.__name__)
    size = _batch_size(len(targets), max(t[:1].numel() for t in (outputs, *tree_leaves(inputs))), batch_size, mode)
    both = tree_map(lambda t: t.to(target_device), (inputs, targets))
    starts = range(0, len(targets), size)
    batches = [tree_map(lambda t, i=start: t[i : i + size], both) for start in starts]
    risk = EmpiricalRisk(network.to(target_device), loss_fn, batches, params=params, mode=mode or "eval")
    description = _joined(checkpoint.metadata, _describe(risk, path, checkpoint.sha256, name, str(data)))
    if strays := checkpoint.folder.left_out if checkpoint.folder else left_out(network, checkpoint):
        description["left_out"] = ", ".join(strays[:3]) + (f" and {len(strays) - 3} more" if strays[3:] else "")
    description["data_description"] = dataset.description
    if arguments:
        description["model_args"] = describe_arguments(arguments)
    return Problem(risk, description)


def _facts_of(path: str, trust_pickle: bool) -> dict[str, Any]:
    """The facts in a file that a user's function reads; none where it is of a kind that only that function knows."""
    try:
        return {} if os.path.isdir(path) else read_checkpoint(path, trust_pickle=trust_pickle).metadata
    except InputError:
        return {}


def _joined(facts: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Both; a fact whose name the analysis has for something else, as ``loss`` and ``seed``, is ``recorded_loss``."""
    taken = {*description, *_TAKEN}
    return {f"recorded_{key}" if key in taken else key: value for key, value in facts.items()} | dict(description)


def _describe(risk: EmpiricalRisk, path: str, sha256: str | None, model: str, data: str) -> dict[str, Any]:
    return {
        "checkpoint": path,
        "sha256": sha256,
        "model": model,
        "data": data,
        "loss": getattr(risk.loss_fn, "__name__", type(risk.loss_fn).__name__),
        "N": risk.num_examples,
        "n": risk.n,
        "mode": risk.mode,
        "dtype": str(risk.dtype).removeprefix("torch."),
        "device": str(risk.device),
    }


def _find_model(
    checkpoint: Checkpoint, model: str | None, model_args: Mapping[str, Any] | None
) -> tuple[nn.Module, str, dict[str, Any] | None]:
    """The network, its name, and the arguments of a built-in one (None for a pickled module)."""
    if checkpoint.folder is not None and model is not None:
        raise InputError(f"model cannot be given with the folder {checkpoint.path}: its config says which model it is")
    described = canonical_name(checkpoint.problem.get("model", ""))
    name = canonical_name(model or described)
    if not name:
        if checkpoint.module is None:
            needed = "give --model or --problem package.module:function"
            raise InputError(f"{checkpoint.path} does not say which model it belongs to; {needed}")
        check_finite(checkpoint)
        return checkpoint.module, type(checkpoint.module).__name__, None
    known = checkpoint.problem.get("model_args", {}) if name == described else {}
    network, arguments = build_model(name, checkpoint, model_args={**known, **(model_args or {})})
    return network, name, arguments


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {name!r} cannot be used here ({reason}); use cpu") from None
    return device


def _block_size(model_args: Mapping[str, Any] | None) -> int:
    """The length of a text's blocks, which is all that can be said of a model that has a config."""
    given = dict(model_args or {})
    size = given.pop("block_size", 64)
    if given or not isinstance(size, int):
        key, value = next(iter(given.items()), ("block_size", size))
        raise InputError(f"{key} = {value!r} is no setting of a model with a config; expected block_size, a number")
    return size


def _batch_size(num_examples: int, elements: int, asked: int | None, mode: str | None) -> int:
    """``elements`` is the number of an example's inputs or outputs, whichever are more."""
    if asked is not None and asked < 1:
        raise InputError(f"batch_size must be at least 1, got {asked}")
    fitting = max(1, _BATCH_ELEMENTS // max(1, elements))
    return asked or min(fitting, -(-num_examples // (1 if mode == "train" else _FEWEST_BATCHES)))


def _try_one(network: nn.Module, name: str, inputs: Any, dataset: Dataset | Sequences, loss: str) -> Tensor:
    """Its outputs for the first example, so that data which do not fit the model are told before all that is long."""
    first = tree_map(lambda t: t[:1], inputs)
    try:
        with torch.no_grad():
            outputs = network(**first) if isinstance(first, dict) else network(first)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        shape, reason = tuple(tree_leaves(dataset.inputs)[0].shape[1:]), " ".join(str(error).split()).rstrip(".")
        raise InputError(f"the model {name} cannot take inputs of shape {shape} ({dataset.name}): {reason}") from error
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model {name} returns a {type(outputs).__name__}, not a tensor; unpack it in a --problem")
    found, wanted = tuple(outputs.shape[1:]), tuple(dataset.targets.shape[1:])
    if dataset.targets.is_floating_point():
        if loss != "mse" or found != wanted:
            needed = "that takes the loss mse and outputs of that shape"
            raise InputError(
                f"the targets of {dataset.name} are floats of shape {wanted}; {needed}, not {loss} and {found}"
            )
        return outputs
    if not found or found[:-1] != wanted:
        shapes = f"outputs of shape {found} for targets of shape {wanted}"
        raise InputError(f"the model {name} gives {shapes}; expected one row of class scores for each target")
    counted = dataset.targets.masked_fill(dataset.targets == IGNORED, 0)
    check_labels(counted.numpy(), found[-1], dataset.name, f" of the model {name}")
    return outputs
