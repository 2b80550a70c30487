"""Folders of Hugging Face: a config and safetensors, or a LoRA adapter of such a folder; nothing is downloaded."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.state_dicts import find_state_dict, read_contents

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What transformers looks for, in its order: one file, or an index of several; pickles last.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NEXT_TOKEN = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
# transformers' tables of the classes whose logits are scores of labels for each token or each sequence.
_TABLES = (
    _NEXT_TOKEN,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
)


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds beside the parameters.

    Parameters
    ----------
    files : tuple of Path
        All that the network is made from; of an adapter, those of its base model too.
    predicts_next : bool
        Whether the logits at a token are scores of the one after it.
    vocabulary : int
        Number of tokens.
    tokenizer : Path or None
        ``tokenizer.json``, where there is one.
    left_out : tuple of str
        Tensors in the files that are not the network's.
    facts : dict
        ``step`` and ``epoch``, where a trainer has left its state.
    """

    files: tuple[Path, ...]
    predicts_next: bool
    vocabulary: int
    tokenizer: Path | None
    left_out: tuple[str, ...]
    facts: dict[str, Any]


def is_model_folder(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder with ``config.json`` or ``adapter_config.json``."""
    return any((Path(path) / name).is_file() for name in (_CONFIG, _ADAPTER))


def read_model_folder(path: Path, trust_pickle: bool) -> tuple[nn.Module, ModelFolder]:
    """The network of a folder (eval mode, CPU, float32), whose output is its logits, and what lies beside it.

    Its class is one of transformers itself, and attention is "eager", which has second derivatives. Of a LoRA folder
    only the adapter's parameters require a gradient.
    """
    if not (path / _ADAPTER).is_file():
        network, folder = _read_base(path, trust_pickle)
    else:
        network, folder = _read_adapter(path, trust_pickle)
    network.register_forward_hook(_logits)
    return network.eval(), folder


def _read_base(path: Path, trust_pickle: bool) -> tuple[nn.Module, ModelFolder]:
    config = _read_json(path / _CONFIG)
    if "auto_map" in config:
        refused = "needs code that comes with it (auto_map), which is never run; build the model in a --problem"
        raise InputError(f"{path} {refused} package.module:function")
    if "quantization_config" in config:
        raise InputError(f"{path} holds quantised weights, which have no derivatives; name the folder before that")
    weights, index = _find_weights(path)
    transformers = _package("transformers", path)
    from transformers.models.auto import modeling_auto

    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    tables = [name for name in _TABLES if architecture in _flat(getattr(modeling_auto, name).values())]
    if not tables:
        expected = "a language model, or a classifier of sequences or tokens, of transformers itself"
        raise InputError(f"{path / _CONFIG} names the architecture {architecture!r}; expected that of {expected}")
    tensors: dict[str, Tensor] = {}
    for file in weights:
        tensors |= find_state_dict(read_contents(file, trust_pickle), file)[0]
    built = getattr(transformers, architecture)
    # without a path there is nothing to look for; it ties, renames and casts what it is given
    how = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    with _quietly(transformers, f"{path} cannot be read by transformers"):
        settings = built.config_class.from_pretrained(path, local_files_only=True)
        network, info = built.from_pretrained(None, config=settings, state_dict=tensors, **how)
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path} lacks {len(missing)} tensors of {architecture} (first {missing[0]}); copy it again")
    network.config.use_cache = False
    left_out = tuple(sorted(info["unexpected_keys"]))
    vocabulary = network.get_input_embeddings().weight.shape[0]
    files = (path / _CONFIG, *index, *weights)
    return network, ModelFolder(
        files, _NEXT_TOKEN in tables, vocabulary, _tokenizer(path), left_out, _trainer_facts(path)
    )


def _read_adapter(path: Path, trust_pickle: bool) -> tuple[nn.Module, ModelFolder]:
    config = _read_json(path / _ADAPTER)
    kind, name = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind != "LORA" or config.get("megatron_config"):
        raise InputError(f"{path} holds an adapter of the kind {kind!r}; expected LORA without Megatron")
    places = (Path(name), path / name) if isinstance(name, str) and name else ()
    base = next((place for place in places if (place / _CONFIG).is_file()), None)
    if base is None or (base / _ADAPTER).is_file():
        needed = "nothing is downloaded; let base_model_name_or_path name the folder of the base model"
        raise InputError(f"{path / _ADAPTER} names the base model {name!r}, which is no such folder here: {needed}")
    if not (path / _ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{path} has no {_ADAPTER_WEIGHTS}; save the adapter with safe_serialization=True")
    peft = _package("peft", path)
    frozen, folder = _read_base(base, trust_pickle)
    with _quietly(_package("transformers", path), f"{path} does not fit its base model {base}"):
        from peft.utils import load_peft_weights

        network = peft.PeftModel.from_pretrained(
            frozen, str(path), is_trainable=True, torch_device="cpu", local_files_only=True
        )
        own = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
        given = load_peft_weights(str(path), device="cpu")
    if strays := sorted(set(own) ^ set(given)):
        raise InputError(f"{path} does not fit its base model {base}: {strays[0]} is in one of them only")
    files = (path / _ADAPTER, path / _ADAPTER_WEIGHTS, *folder.files)
    tokenizer, facts = _tokenizer(path) or folder.tokenizer, _trainer_facts(path)
    return network, ModelFolder(files, folder.predicts_next, folder.vocabulary, tokenizer, folder.left_out, facts)


def _logits(module: nn.Module, inputs: Any, outputs: Any) -> Tensor:
    """The outputs that the loss is a function of, and so those of the Gauss-Newton matrix."""
    return outputs.logits


def _find_weights(path: Path) -> tuple[list[Path], list[Path]]:
    """The files with a folder's parameters, and their index where there is one."""
    found = next((name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise InputError(f"{path} has a {_CONFIG} but none of {', '.join(_WEIGHTS)}; name a folder with the weights")
    if not found.endswith(".index.json"):
        return [path / found], []
    try:
        files = [path / name for name in sorted(set(_read_json(path / found)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError):
        raise InputError(f"{path / found} does not say which file holds which tensor; copy it again") from None
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{path / found} names {missing[0].name}, which is not there; copy the folder again")
    return files, [path / found]


def _tokenizer(path: Path) -> Path | None:
    return path / "tokenizer.json" if (path / "tokenizer.json").is_file() else None


def _trainer_facts(path: Path) -> dict[str, Any]:
    state = _read_json(path / "trainer_state.json") if (path / "trainer_state.json").is_file() else {}
    names = {"step": "global_step", "epoch": "epoch"}
    return {fact: state[key] for fact, key in names.items() if isinstance(state.get(key), (int, float))}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not settings by name; copy it again")
    return found


def _flat(names: Any) -> set[str]:
    """Names of classes, of which a table has one or several for a kind of model."""
    return {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)}


def _package(name: str, path: Path) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        needed = f"which needs the package {name}; install pyhessian-spectra[{name}]"
        raise InputError(f"{path} is a folder of Hugging Face, {needed}") from None


@contextlib.contextmanager
def _quietly(transformers: ModuleType, what: str) -> Iterator[None]:
    """Errors as one sentence; no bars, no warnings, and the caller's random state as it was."""
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of a dozen types, by what is damaged
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{what}: {reason[:400]}") from None
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
