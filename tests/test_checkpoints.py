"""Checkpoints: every format gives the same state dict back, and every damage one sentence."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.problems.architectures.gpt import GPT
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.checkpoints import (
    Checkpoint,
    fit_state_dict,
    left_out,
    read_checkpoint,
    save_checkpoint,
)

_PROBLEM = {"model": "mlp", "model_args": {"widths": (3, 4, 2)}, "data": "digits", "loss": "mse"}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP((3, 4, 2))


def _assert_same(found: dict[str, torch.Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _checkpoint(state_dict: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(Path("some.pt"), "", state_dict)


def _saved(path: Path, contents: object) -> Path:
    torch.save(contents, path)
    return path


def _sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    """The message, after checking that it is one line."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_counters_of_a_bare_state_dict_are_no_facts(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    torch.save({"state_dict": model.state_dict(), "step": torch.tensor(7)}, tmp_path / "nested.pt")
    assert read_checkpoint(tmp_path / "bare.pt").metadata == {}
    assert read_checkpoint(tmp_path / "nested.pt").metadata == {"step": 7}


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pkl"])
def test_a_bare_state_dict_is_read_whatever_its_suffix(tmp_path, model, name):
    path = _saved(tmp_path / name, model.state_dict())
    checkpoint = read_checkpoint(path)
    _assert_same(checkpoint.state_dict, model)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_format_from_before_zip_files_is_read(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _assert_same(read_checkpoint(tmp_path / "old.pth").state_dict, model)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "my_own_key"])
def test_a_nested_state_dict_is_found_beside_the_optimizer_and_the_epoch(tmp_path, model, key):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()  # so that its state holds tensors
    contents = {"epoch": 7, "optimizer": optimizer.state_dict(), key: model.state_dict(), "best_acc": torch.tensor(0.5)}
    if key == "my_own_key":
        del contents["best_acc"]  # a bare tensor beside an unknown key would itself be a state dict
    checkpoint = read_checkpoint(_saved(tmp_path / "a.pt", contents))
    _assert_same(checkpoint.state_dict, model)
    assert checkpoint.metadata["epoch"] == 7


def test_a_state_dict_nested_twice_is_found(tmp_path, model):
    path = _saved(tmp_path / "a.pt", {"model": {"state_dict": model.state_dict()}})
    _assert_same(read_checkpoint(path).state_dict, model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_prefixes_are_stripped_in_any_order(tmp_path, model, prefix):
    state_dict = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    _assert_same(read_checkpoint(_saved(tmp_path / "a.pt", {"state_dict": state_dict})).state_dict, model)


def test_a_checkpoint_of_real_data_parallel_is_read(tmp_path, model):
    path = _saved(tmp_path / "a.pt", nn.DataParallel(model).state_dict())
    _assert_same(read_checkpoint(path).state_dict, model)


def test_safetensors_are_read_with_their_metadata(tmp_path, model):
    save_file(dict(model.state_dict()), tmp_path / "a.safetensors", metadata={"step": "12"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    expected = model.state_dict()
    assert set(checkpoint.state_dict) == set(expected)
    assert all(torch.equal(checkpoint.state_dict[name], expected[name]) for name in expected)
    assert checkpoint.metadata["step"] == "12" and checkpoint.problem == {}


def test_safetensors_come_in_the_order_of_their_numbers(tmp_path):
    save_file({f"layers.{i}.weight": torch.ones(1) for i in (10, 2, 0)}, tmp_path / "a.safetensors")
    names = list(read_checkpoint(tmp_path / "a.safetensors").state_dict)
    assert names == ["layers.0.weight", "layers.2.weight", "layers.10.weight"]


def test_a_checkpoint_on_another_dtype_keeps_it(tmp_path):
    path = _saved(tmp_path / "a.pt", {"w": torch.ones(2, dtype=torch.bfloat16)})
    assert read_checkpoint(path).state_dict["w"].dtype == torch.bfloat16


def test_what_save_checkpoint_writes_reads_back(tmp_path, model):
    path = save_checkpoint(tmp_path / "new" / "a.pt", model, problem=_PROBLEM, step=3, accuracy=np.float64(0.5))
    checkpoint = read_checkpoint(path)
    _assert_same(checkpoint.state_dict, model)
    assert checkpoint.problem == _PROBLEM | {"model_args": {"widths": [3, 4, 2]}}
    assert checkpoint.metadata == {"step": 3, "accuracy": 0.5}
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, model, monkeypatch):
    path = save_checkpoint(tmp_path / "a.pt", model, problem=_PROBLEM)
    before = path.read_bytes()

    def fail(contents: object, handle: object) -> None:
        handle.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, model, problem=_PROBLEM)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.pt", model, problem=_PROBLEM)


def test_facts_that_are_not_plain_are_refused(tmp_path, model):
    with pytest.raises(InputError, match="optimizer"):
        save_checkpoint(tmp_path / "a.pt", model, problem=_PROBLEM, optimizer=object())
    with pytest.raises(InputError, match="'dataset'"):
        save_checkpoint(tmp_path / "a.pt", model, problem={"dataset": "digits"})
    assert list(tmp_path.iterdir()) == []


def test_a_self_description_of_the_wrong_type_is_refused(tmp_path):
    contents = {"state_dict": {"w": torch.ones(1)}, "pyhessian_spectra": {"model": 3}}
    with pytest.raises(InputError, match="model = 3"):
        read_checkpoint(_saved(tmp_path / "a.pt", contents))


def test_a_pickled_module_is_refused_by_name_and_read_when_trusted(tmp_path, model):
    path = _saved(tmp_path / "a.pt", {"model": model, "epoch": 2})
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "pyhessian_spectra.problems.architectures.mlp.MLP" in _sentence(error)
    assert "--trust-pickle" in _sentence(error)
    checkpoint = read_checkpoint(path, trust_pickle=True)
    _assert_same(checkpoint.state_dict, model)
    assert isinstance(checkpoint.module, MLP) and checkpoint.metadata == {"epoch": 2}


def test_a_pickled_data_parallel_gives_the_network_inside(tmp_path, model):
    path = _saved(tmp_path / "a.pt", nn.DataParallel(model))
    assert isinstance(read_checkpoint(path, trust_pickle=True).module, MLP)


@pytest.mark.parametrize(
    ("fact", "refused"), [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (np.float64(0.1), "multiarray.scalar")]
)
def test_objects_beside_the_state_dict_are_refused_by_name(tmp_path, model, fact, refused):
    path = _saved(tmp_path / "a.ckpt", {"state_dict": model.state_dict(), "hyper_parameters": fact})
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert refused in _sentence(error)
    _assert_same(read_checkpoint(path, trust_pickle=True).state_dict, model)


def test_a_class_that_is_no_longer_there_is_told(tmp_path, model):
    path = tmp_path / "a.pt"
    torch.save(model, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"architectures.mlp\nMLP", b"architectures.mlp\nXXX"))
    with pytest.raises(InputError) as error:
        read_checkpoint(path, trust_pickle=True)
    assert "cannot be imported" in _sentence(error) and "XXX" in _sentence(error)


def test_the_class_of_a_trusted_pickle_is_found_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\nclass Net(nn.Linear):\n    pass\n"
    (tmp_path / "user_network.py").write_text(code)
    module = types.ModuleType("user_network")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "user_network", module)
    _saved(tmp_path / "a.pt", module.Net(2, 3))
    monkeypatch.delitem(sys.modules, "user_network")
    before = list(sys.path)
    checkpoint = read_checkpoint("a.pt", trust_pickle=True)
    assert type(checkpoint.module).__name__ == "Net" and sys.path == before
    monkeypatch.delitem(sys.modules, "user_network")


def test_a_plain_pickle_of_arrays_is_read_only_when_trusted(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.ones((2, 3))}, "epoch": 1}))
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert "--trust-pickle" in _sentence(error)
    assert torch.equal(read_checkpoint(path, trust_pickle=True).state_dict["w"], torch.ones(2, 3, dtype=torch.float64))


def test_reading_a_hostile_pickle_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    with pytest.raises(InputError):
        read_checkpoint(_saved(tmp_path / "a.pt", {"w": torch.ones(1), "x": Hostile()}))
    assert not (tmp_path / "ran").exists()


def test_each_kind_of_damage_is_one_sentence_that_names_the_file(tmp_path):
    whole = _saved(tmp_path / "whole.pt", {"w": torch.ones(2000)}).read_bytes()
    torch.save({"w": torch.ones(2000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    save_file({"w": torch.ones(2000)}, tmp_path / "w.safetensors")
    tensors = (tmp_path / "w.safetensors").read_bytes()
    damaged = {
        "empty.pt": (b"", "is empty"),
        "half.pt": (whole[: len(whole) // 2], "truncated"),
        "start.pt": (whole[:20], "truncated"),
        "old-half.pt": (old[: len(old) // 2], "truncated"),
        "old-start.pt": (old[:60], "truncated"),
        "text.pt": (b"hello world, this is no checkpoint", "is not a checkpoint"),
        "empty.safetensors": (b"", "is empty"),
        "half.safetensors": (tensors[: len(tensors) // 2], "not a complete safetensors file"),
        "wrong.safetensors": (whole, "not a complete safetensors file"),
    }
    for name, (content, expected) in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        for trust_pickle in (False, True):
            with pytest.raises(InputError) as error:
                read_checkpoint(path, trust_pickle=trust_pickle)
            assert expected in _sentence(error) and name in _sentence(error)


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError) as error:
        read_checkpoint(tmp_path / "a.pt")
    assert "is not a checkpoint" in _sentence(error)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"epoch": 3}, "holds no tensors"),
        ({}, "holds no tensors"),
        ([1, 2], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"netG": {"w": torch.ones(1)}, "netD": {"w": torch.ones(1)}}, "2 state dicts (netG, netD)"),
    ],
)
def test_a_file_without_one_state_dict_says_what_it_holds(tmp_path, contents, expected):
    with pytest.raises(InputError) as error:
        read_checkpoint(_saved(tmp_path / "a.pt", contents))
    assert expected in _sentence(error)


def test_fitting_names_the_first_missing_unexpected_and_misshaped_key(model):
    state_dict = dict(model.state_dict())
    del state_dict["fc2.bias"]
    state_dict["fc9.weight"] = torch.ones(1)
    state_dict["fc1.weight"] = torch.ones(4, 5)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError) as error:
        fit_state_dict(model, _checkpoint(state_dict))
    assert "1 missing (first fc2.bias)" in _sentence(error)
    assert "1 unexpected (first fc9.weight)" in _sentence(error)
    assert "fc1.weight: (4, 5) in the file, (4, 3) in the model" in _sentence(error)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_fitting_refuses_weights_that_are_no_real_floats(model, dtype):
    state_dict = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=rf"that are no real floats \(first [\w.]+: {dtype} in the file\)"):
        fit_state_dict(model, _checkpoint(state_dict))


def test_fitting_does_without_num_batches_tracked_but_not_without_running_means():
    norm = nn.BatchNorm1d(2)
    state_dict = {name: torch.full_like(tensor, 2) for name, tensor in norm.state_dict().items()}
    del state_dict["num_batches_tracked"]
    fit_state_dict(norm, _checkpoint(state_dict))
    assert norm.running_mean.tolist() == [2, 2]
    del state_dict["running_mean"]
    with pytest.raises(InputError, match="running_mean"):
        fit_state_dict(norm, _checkpoint(state_dict))


def test_fitting_needs_a_tied_parameter_only_once():
    gpt = GPT(block_size=4, width=4, layers=1, tied=True)
    state_dict = {name: torch.full_like(tensor, 0.5) for name, tensor in gpt.state_dict().items()}
    del state_dict["lm_head.weight"]
    fit_state_dict(gpt, _checkpoint(state_dict))
    assert gpt.lm_head.weight is gpt.wte.weight and bool((gpt.lm_head.weight == 0.5).all())


def test_fitting_leaves_out_the_prefix_that_lightning_adds(tmp_path, model):
    contents = {
        "epoch": 4,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{name}": tensor + 1 for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    }
    expected = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    checkpoint = read_checkpoint(_saved(tmp_path / "last.ckpt", contents))
    fit_state_dict(model, checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert checkpoint.metadata["global_step"] == 120


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fitting_refuses_non_finite_values_by_name(model, value):
    state_dict = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state_dict["fc2.weight"][1, 2] = value
    with pytest.raises(NonFiniteError, match=r"fc2\.weight \(1 of its 8 values\)"):
        fit_state_dict(model, _checkpoint(state_dict))


def _lightning(model, **strays):
    return {f"net.{name}": tensor + 1 for name, tensor in model.state_dict().items()} | strays


def test_a_prefix_is_found_in_spite_of_stray_tensors_and_these_are_told(tmp_path, model):
    strays = {"loss_fn.weight": torch.full((3,), float("nan")), "accuracy.confmat": torch.ones(2, 2)}
    checkpoint = read_checkpoint(_saved(tmp_path / "last.ckpt", {"state_dict": _lightning(model, **strays)}))
    expected = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    fit_state_dict(model, checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert left_out(model, checkpoint) == list(strays)


def test_of_two_networks_in_a_file_none_is_taken_before_a_prefix_says_which(tmp_path, model):
    teacher = {f"teacher.{name}": tensor + 2 for name, tensor in model.state_dict().items()}
    path = _saved(tmp_path / "two.pt", {"state_dict": _lightning(model, **teacher)})
    with pytest.raises(InputError, match=r"--prefix: net\. \(\d+\), teacher\. \(\d+\)"):
        fit_state_dict(model, read_checkpoint(path))
    expected = {name: tensor + 2 for name, tensor in model.state_dict().items()}
    fit_state_dict(model, read_checkpoint(path, prefix="teacher"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="nothing under the prefix 'student', but names that begin with net"):
        read_checkpoint(path, prefix="student")
