"""Folders of Hugging Face that are refused, each in one sentence, with or without transformers."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from pyhessian_spectra.cli.inputs import read_given
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import load_problem, read_checkpoint

_CONFIG = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    save_file({"transformer.wte.weight": torch.ones(7, 4)}, tmp_path / "model.safetensors")
    return tmp_path


def _adapter(folder, **settings):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    save_file({"lora_A.weight": torch.ones(2, 4)}, folder / "adapter_model.safetensors")
    return folder


def _sentence(folder, **options) -> str:
    with pytest.raises(InputError) as error:
        load_problem(folder, data="digits", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_package_that_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "needs the package transformers; install pyhessian-spectra[transformers]" in _sentence(folder)


def test_a_package_that_an_adapter_needs_is_named(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    adapter = _adapter(tmp_path_factory.mktemp("adapter"), base_model_name_or_path=str(folder))
    assert "needs the package peft; install pyhessian-spectra[peft]" in _sentence(adapter)


def test_code_that_comes_with_a_config_is_never_run(folder, monkeypatch):
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    (folder / "config.json").write_text(json.dumps({**_CONFIG, "auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    assert "needs code that comes with it (auto_map), which is never run" in _sentence(folder)


def test_quantised_weights_are_refused(folder):
    (folder / "config.json").write_text(json.dumps({**_CONFIG, "quantization_config": {"bits": 4}}))
    assert "holds quantised weights" in _sentence(folder)


def test_a_config_without_weights_or_that_is_no_json_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "none of model.safetensors" in _sentence(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in _sentence(folder)


def test_an_index_that_names_no_files_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "does not say which file holds which tensor" in _sentence(folder)


@pytest.mark.parametrize("name", [None, "gpt2", "someone/gpt2"])
def test_the_base_model_of_an_adapter_is_a_folder_and_is_never_downloaded(tmp_path, name):
    told = _sentence(_adapter(tmp_path, base_model_name_or_path=name))
    assert f"names the base model {name!r}, which is no such folder here: nothing is downloaded" in told


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    assert "an adapter of the kind 'PROMPT_TUNING'" in _sentence(_adapter(tmp_path, peft_type="PROMPT_TUNING"))


def test_a_prefix_is_no_option_where_a_config_says_which_model_it_is(folder):
    assert "its config says which model" in _sentence(folder, prefix="net.")


def test_a_folder_is_a_checkpoint_to_compare_unless_it_holds_results(folder):
    (given,), _ = read_given([str(folder)])
    assert given.results is None
    (folder / "results.json").write_text("{}")
    (given,), _ = read_given([str(folder)])
    assert given.results == (folder / "results.json", folder / "spectra.npz")


def test_another_directory_is_still_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"is a directory without config\.json"):
        read_checkpoint(tmp_path)
