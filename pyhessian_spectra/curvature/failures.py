"""What users' code raises, told in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.errors import InputError, OutOfMemoryError, SecondDerivativeError, SpectraError

# What users' code raises where it fails.
FAILURES = (RuntimeError, LookupError, TypeError, ValueError, MemoryError)


def explained(error: Exception, batch: Batch) -> SpectraError:
    """An error of the model or the loss on a batch, in a sentence with the remedy."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return OutOfMemoryError(
            f"out of memory at batch {batch.index}; lower the batch size (the result does not change) or the memory "
            "budget of the kept linearisation"
        )
    missing = re.search(r"derivative for '?([\w:]+)'? is not implemented", text)
    if missing:
        return SecondDerivativeError(
            f"{missing.group(1)} has no second derivative; replace it in the model by operations that have one"
        )
    if "backward through the graph a second time" in text:
        return InputError(
            "the loss was differentiated where it was computed, or is not computed anew in each call; leave backward() "
            "out of the closure, the model and the loss"
        )
    if "use_reentrant" in text:
        return SecondDerivativeError(
            "a segment under torch.utils.checkpoint has no second derivative; pass use_reentrant=False to checkpoint"
        )
    if "sparse" in text.lower():
        return SecondDerivativeError(
            "a gradient is sparse, and has no second derivative; build the embedding with sparse=False"
        )
    shapes = [tuple(x.shape) for x in tensors_in(batch.inputs)]
    if not shapes:
        return InputError(f"the model or the loss failed on batch {batch.index}: {type(error).__name__}: {text}")
    return InputError(
        f"the model or the loss failed on batch {batch.index} (inputs of shape {', '.join(map(str, shapes))}, targets "
        f"{tuple(getattr(batch.targets, 'shape', ()))}): {type(error).__name__}: {text}"
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nested structure of mappings, tuples and lists, in order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return [value] if isinstance(value, Tensor) else []
