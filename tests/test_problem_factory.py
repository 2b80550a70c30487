"""load_problem: a checkpoint and a few words become the right risk, or one sentence that says why not."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import load_data, load_problem, read_checkpoint, save_checkpoint
from pyhessian_spectra.problems.architectures.mlp import MLP

_DATA = Path(os.environ.get("PYHESSIAN_SPECTRA_DATA", Path(__file__).parents[2] / "shared" / "data"))
_PROBLEM = {"model": "mlp", "model_args": {"activation": "tanh"}, "data": "digits", "loss": "mse"}


def _seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.fixture
def mlp() -> nn.Module:
    return _seeded(lambda: MLP((64, 5, 10), activation="tanh"))


@pytest.fixture
def described(tmp_path, mlp) -> Path:
    return save_checkpoint(tmp_path / "described.pt", mlp, problem=_PROBLEM, step=4, accuracy=0.75)


@pytest.fixture
def bare(tmp_path, mlp) -> Path:
    torch.save(mlp.state_dict(), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def _sentence(path: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        load_problem(path, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_a_self_describing_checkpoint_needs_no_options(described, mlp):
    problem = load_problem(described)
    data = load_data("digits")
    with torch.no_grad():
        expected = F.mse_loss(mlp(data.inputs), F.one_hot(data.targets).float())
    assert problem.risk.loss() == pytest.approx(float(expected), rel=1e-6)
    assert problem.description["step"] == 4 and problem.description["accuracy"] == 0.75


def test_the_description_is_json_scalars_with_the_agreed_keys(described):
    description = load_problem(described, num_examples=30).description
    expected = {
        "checkpoint": str(described),
        "sha256": read_checkpoint(described).sha256,
        "model": "mlp",
        "data": "digits",
        "N": 30,
        "n": 64 * 5 + 5 + 5 * 10 + 10,
        "loss": "mse",
        "mode": "eval",
        "dtype": "float32",
        "device": "cpu",
    }
    assert description.items() >= expected.items()
    assert json.loads(json.dumps(description)) == description
    assert "activation=tanh" in description["model_args"]
    assert "first 30 of the 1,438" in description["data_description"]


def test_the_same_model_in_another_spelling_keeps_its_arguments(described):
    assert "activation=tanh" in load_problem(described, model="MLP", num_examples=3).description["model_args"]


def test_options_override_what_the_checkpoint_says(described, mlp):
    problem = load_problem(described, loss="cross_entropy", split="test", model_args={"activation": "relu"})
    data = load_data("digits", split="test")
    hidden = torch.relu(mlp.fc1(data.inputs))
    expected = F.cross_entropy(mlp.fc2(hidden), data.targets).detach()
    assert problem.risk.loss() == pytest.approx(float(expected), rel=1e-6)
    assert problem.description["N"] == 359


def test_shapes_and_names_are_enough_for_a_bare_state_dict(bare):
    problem = load_problem(bare, model="mlp", data="digits", num_examples=10)
    assert problem.description["loss"] == "cross_entropy" and problem.risk.n == 385


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "sizes"),
    [(1000, None, [100] * 10), (7, None, [1] * 7), (10, 4, [4, 4, 2]), (10, 99, [10]), (1000, 600, [600, 400])],
)
def test_batches_have_the_size_asked_for_and_keep_the_order(described, num_examples, batch_size, sizes):
    data = load_problem(described, num_examples=num_examples, batch_size=batch_size).risk.data
    assert [len(x) for x, _ in data] == sizes
    assert torch.equal(torch.cat([x for x, _ in data]), load_data("digits", num_examples=num_examples).inputs)


def test_how_the_data_are_cut_does_not_change_the_risk(described):
    one, many = (load_problem(described, num_examples=10, batch_size=size, dtype="float64").risk for size in (10, 4))
    assert one.loss() == pytest.approx(many.loss(), rel=1e-14)


def test_float64_is_float64_throughout(described):
    risk = load_problem(described, num_examples=3, dtype="float64").risk
    assert risk.gradient().dtype == torch.float64 and risk.data[0][0].dtype == torch.float64


def test_params_restrict_the_coordinates(described):
    assert load_problem(described, num_examples=3, params=["fc2"]).risk.n == 60
    assert "fc7" in _sentence(described, num_examples=3, params=["fc7"])


def test_a_pickled_module_needs_no_model_when_trusted(tmp_path, mlp):
    torch.save(nn.DataParallel(mlp), tmp_path / "a.pt")
    assert "--trust-pickle" in _sentence(tmp_path / "a.pt", data="digits")
    problem = load_problem(tmp_path / "a.pt", data="digits", num_examples=5, trust_pickle=True)
    assert problem.description["model"] == "MLP" and "model_args" not in problem.description
    assert isinstance(problem.risk.model, MLP)


def test_the_random_state_and_the_checkpoint_are_left_alone(described):
    state, content = torch.random.get_rng_state(), described.read_bytes()
    load_problem(described, num_examples=3).risk.gradient()
    assert torch.equal(state, torch.random.get_rng_state()) and content == described.read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "does not say which data"),
        ({"data": "digits"}, "does not say which model"),
        ({"model": "mlq", "data": "digits"}, "did you mean mlp?"),
        ({"model": "mlp", "data": "digitz"}, "there is no data at digitz"),
        ({"model": "mlp", "data": "digits", "loss": "hinge"}, "known ones are cross_entropy, mse"),
        ({"model": "mlp", "data": "digits", "dtype": "float16"}, "float32 or float64"),
        ({"model": "mlp", "data": "digits", "device": "gpu"}, "device 'gpu'"),
        ({"model": "mlp", "data": "digits", "device": "meta"}, "device 'meta'"),
        ({"model": "mlp", "data": "digits", "mode": "test"}, "mode"),
        ({"model": "mlp", "data": "digits", "split": "all"}, "split"),
        ({"model": "mlp", "data": "digits", "batch_size": 0}, "batch_size"),
        ({"model": "lenet", "data": "digits"}, "does not fit the model lenet"),
        ({"model": "mlp", "data": "digits", "problem": "a:b"}, "model cannot be given together with problem"),
        ({"num_examples": 3, "problem": "a:b"}, "num_examples cannot be given together with problem"),
    ],
)
def test_wrong_options_are_one_sentence(bare, options, expected):
    assert expected in _sentence(bare, **options)


def test_data_that_do_not_fit_the_model_are_told_before_anything_starts(tmp_path, bare):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 7)), y=np.array([0, 1, 2]))
    message = _sentence(bare, model="mlp", data=str(tmp_path / "a.npz"))
    assert "the model mlp cannot take inputs of shape (7,)" in message
    np.savez(tmp_path / "a.npz", x=np.ones((3, 64)), y=np.array([0, 12, 2]))
    message = _sentence(bare, model="mlp", data=str(tmp_path / "a.npz"))
    assert "label 1 of a is 12, outside the 10 classes of the model mlp" in message
    np.savez(tmp_path / "a.npz", x=np.ones((3, 64)), y=np.ones((3, 2)))
    assert "floats of shape (2,)" in _sentence(bare, model="mlp", data=str(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", x=np.ones((3, 64)), y=np.ones((3, 2), dtype=int))
    assert "for targets of shape (2,)" in _sentence(bare, model="mlp", data=str(tmp_path / "a.npz"))


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """Writes a module into the current directory and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, code: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(code))

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


_FACTORY = """
    import torch
    from pyhessian_spectra.curvature.risk import EmpiricalRisk

    def make(path):
        assert isinstance(path, str)
        model = torch.nn.Linear(64, 10)
        state = torch.load(path, weights_only=True)
        return EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (torch.ones(4, 64), torch.arange(4)))
"""


def test_a_users_factory_is_found_in_the_current_directory_and_called(bare, user_code):
    user_code("user_package.problem", _FACTORY)
    path_before = list(sys.path)
    problem = load_problem(bare, problem="user_package.problem:make")
    assert isinstance(problem.risk, EmpiricalRisk)
    assert problem.description == {
        "checkpoint": str(bare),
        "sha256": read_checkpoint(bare).sha256,
        "model": "Linear",
        "data": "user_package.problem:make",
        "loss": "CrossEntropyLoss",
        "N": 4,
        "n": 650,
        "mode": "eval",
        "dtype": "float32",
        "device": "cpu",
    }
    assert sys.path == path_before


def test_params_apply_to_a_users_factory_too(bare, user_code):
    user_code("user_params", _FACTORY)
    assert load_problem(bare, problem="user_params:make", params="bias").risk.n == 10


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("user_bad", "package.module:function"),
        ("user_bad:", "package.module:function"),
        ("user_bad.py:make", "write user_bad:make"),
        ("user_nowhere:make", "there is no module user_nowhere in"),
        ("user_bad.inner:make", "user_bad"),
        ("user_bad:other", "has no function other"),
        ("user_bad:number", "has no function number"),
        ("user_bad:broken", "ZeroDivisionError: division by zero ("),
        ("user_bad:broken", "user_bad.py, line 6)"),
        ("user_bad:leave", "SystemExit: 3"),
        ("user_bad:nothing", "returned a NoneType"),
        ("user_bad:bare", "must take one argument, the path of the checkpoint"),
        ("user_bad:inside_torch", "user_bad.py, line 18)"),
        ("user_syntax:make", "SyntaxError"),
        ("user_syntax:make", "user_syntax.py, line 1)"),
        ("user_imports:make", "ModuleNotFoundError: No module named 'user_missing'"),
        ("user_imports:make", "user_imports.py, line 2)"),
    ],
)
def test_errors_in_a_users_factory_are_one_sentence_with_file_and_line(bare, user_code, spec, expected):
    user_code(
        "user_bad",
        """\
        import torch

        number = 3

        def broken(path):
            return 1 / 0

        def leave(path):
            raise SystemExit(3)

        def nothing(path):
            return None

        def bare():
            return None

        def inside_torch(path):
            return torch.nn.Linear(2, 3)(torch.ones(5))
        """,
    )
    user_code("user_syntax", "def make(path:\n")
    user_code("user_imports", "\nimport user_missing\n")
    before = list(sys.path)
    assert expected in _sentence(bare, problem=spec)
    assert sys.path == before


def test_a_users_factory_is_not_called_without_a_checkpoint(tmp_path):
    assert "there is no checkpoint" in _sentence(tmp_path / "nowhere.pt", problem="user_any:make")


def test_in_train_mode_the_data_stay_together_because_batchnorm_sees_a_batch(described):
    assert [len(x) for x, _ in load_problem(described, num_examples=50, mode="train").risk.data] == [50]


def test_facts_in_the_file_are_kept_beside_a_users_factory_and_hide_none_of_its_own(tmp_path, mlp, user_code):
    user_code("user_facts", _FACTORY)
    facts = {"step": 7, "epoch": 2, "lr": 0.1, "loss": 0.5, "seed": 3, "val_loss": torch.tensor(0.25)}
    torch.save({"model_state_dict": mlp.state_dict(), **facts}, tmp_path / "step.pt")
    found = load_problem(tmp_path / "step.pt", problem="user_facts:make").description
    assert {key: found[key] for key in ("step", "epoch", "lr", "val_loss")} == {
        "step": 7, "epoch": 2, "lr": 0.1, "val_loss": 0.25,
    }  # fmt: skip
    assert (found["loss"], found["recorded_loss"], found["recorded_seed"]) == ("CrossEntropyLoss", 0.5, 3)
    assert "seed" not in found  # it is the analysis' own
