"""Sequences of tokens for the models of Hugging Face: token ids in an .npz file, or a text and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.datasets.arrays import opened_npz, take_part
from pyhessian_spectra.problems.datasets.dataset import SPLITS, Split
from pyhessian_spectra.problems.losses import IGNORED
from pyhessian_spectra.problems.pretrained import ModelFolder

# What a model may be given beside input_ids, by the names of its own arguments.
_BESIDE = ("attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Sequences:
    """Sequences in the order of their file, on the CPU, and what their logits are compared with.

    Parameters
    ----------
    inputs : dict of str to Tensor, shape (N, T), int64
        ``input_ids``, and ``attention_mask`` and ``token_type_ids`` where the file has them.
    targets : Tensor, shape (N, T), (N,) or (N, C)
        int64 tokens or classes, -100 where nothing is to be predicted; or the float32 values of a regression.
    name : str
    description : str
        What was taken, for a reader of the report.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    name: str
    description: str


def load_sequences(
    spec: str, folder: ModelFolder, *, split: str, num_examples: int | None, block_size: int
) -> Sequences:
    """The first sequences of a file, None for all, with targets at the positions of the logits they belong to.

    Where a model ``predicts_next``, the labels are the tokens themselves unless the file has others, and move forward
    by one: the target at position t is label t + 1, and there is none at the last. A mean over targets is then the
    model's own loss, and the number of those that are not -100 is the number of its terms.
    """
    if split not in SPLITS:
        raise InputError(f"split must be 'train' or 'test', got {split!r}")
    name, colon, rest = spec.partition(":")
    path = Path(rest if colon and name in ("text", "npz") else spec).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path}; a language model takes a text or an .npz with input_ids")
    if path.suffix == ".npz" or name == "npz":
        arrays, noun = _read_arrays(path, split), "sequences"
    else:
        arrays = {"input_ids": _read_text(path, split, folder.tokenizer, block_size)}
        noun = f"blocks of {block_size} tokens"
        if not folder.predicts_next:
            raise InputError(f"{path} is a text, which has no labels for this model; give an .npz with labels")
    labels = arrays.pop("labels", None)
    ids = arrays["input_ids"]
    if ((ids < 0) | (ids >= folder.vocabulary)).any():
        outside = ids[(ids < 0) | (ids >= folder.vocabulary)][0]
        raise InputError(f"{path} holds the token {outside}, outside the vocabulary, 0 to {folder.vocabulary - 1}")
    if labels is None and not folder.predicts_next:
        raise InputError(f"{path} has no array labels, which this model needs: a class, or one for each token")
    if labels is None:
        labels = np.where(arrays.get("attention_mask", np.ones_like(ids)) == 0, IGNORED, ids)
    if folder.predicts_next:
        if labels.shape != ids.shape or labels.dtype.kind == "f":
            raise InputError(f"{path}: labels of shape {labels.shape} are no tokens for sequences of shape {ids.shape}")
        labels = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], IGNORED)], axis=1)
    count, available = num_examples or len(ids), len(ids)
    if count > available:
        raise InputError(f"num_examples = {count}, but {path.name} has {available:,} {noun}")
    targets = torch.from_numpy(labels[:count].copy())
    if targets.is_floating_point() and targets.ndim == 1:  # a model of one output has it as a column
        targets = targets[:, None]
    inputs = {key: torch.from_numpy(array[:count].copy()) for key, array in arrays.items()}
    part = "training" if split == "train" else "test"
    taken = f"all {count:,}" if count == available else f"first {count:,} of the {available:,}"
    return Sequences(inputs, targets, path.stem, f"{taken} {part} {noun} of {path.name}")


def _read_arrays(path: Path, split: Split) -> dict[str, NDArray]:
    """``input_ids`` and what lies beside them, or with the split in each name; nothing is unpickled."""
    with opened_npz(path) as archive:
        held = list(archive.files)
        ending = f"_{split}" if f"input_ids_{split}" in held else ""
        named = {key: f"{key}{ending}" for key in ("input_ids", "labels", *_BESIDE)}
        arrays = {key: archive[name] for key, name in named.items() if name in held}
    if split == "test" and not ending:
        raise InputError(f"{path} has no test split; save the arrays input_ids_test and labels_test in it")
    if "input_ids" not in arrays:
        raise InputError(f"{path} has the arrays {', '.join(held) or 'none'}; expected input_ids (N, T) and labels")
    shape = arrays["input_ids"].shape
    for key, array in arrays.items():
        kinds = "iufb" if key == "labels" else "iub"
        fits = array.shape[:1] == shape[:1] if key == "labels" else array.shape == shape
        if len(shape) != 2 or 0 in shape or not fits or array.dtype.kind not in kinds or not np.isfinite(array).all():
            told = f"{key} of shape {array.shape} and {array.dtype} beside input_ids of shape {shape}"
            raise InputError(f"{path}: {told}; expected integers (N, T), and labels of N rows")
    return {key: array.astype(np.float32 if array.dtype.kind == "f" else np.int64) for key, array in arrays.items()}


def _read_text(path: Path, split: Split, tokenizer: Path | None, block_size: int) -> NDArray[np.int64]:
    """Consecutive blocks of tokens, shape (N, block_size), with no special tokens between them."""
    if tokenizer is None:
        raise InputError(f"{path} is a text, and the model's folder has no tokenizer.json; give token ids in an .npz")
    if block_size < 2:
        raise InputError(f"block_size must be at least 2, got {block_size}")
    from tokenizers import Tokenizer  # comes with transformers

    try:
        reader = Tokenizer.from_file(str(tokenizer))
        reader.no_truncation()
        reader.no_padding()
        ids = reader.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(f"{tokenizer} cannot be read as a tokenizer ({error}); copy it again") from None
    part = take_part(np.asarray(ids, dtype=np.int64), split)
    count = part.size // block_size  # what does not fill a block is left out
    if count < 1:
        raise InputError(f"{path} is too short: its {split} part has {part.size} tokens, less than one block")
    return part[: count * block_size].reshape(count, block_size)
