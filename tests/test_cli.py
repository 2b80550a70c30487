"""The command line from end to end: what it writes, what it says, and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from commands import FAST, OWN, one_sentence, results, small_mlp, snapshot, write_problem

from pyhessian_spectra.analysis.saved import load_analyses
from pyhessian_spectra.cli import request, run
from pyhessian_spectra.cli.main import commands, size
from pyhessian_spectra.numbers import format_headline
from pyhessian_spectra.problems import training
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.architectures.resnet import cifar_resnet
from pyhessian_spectra.problems.checkpoints import save_checkpoint

_DATA = Path(os.environ.get("PYHESSIAN_SPECTRA_DATA", Path(__file__).parents[2] / "shared" / "data"))


# What the commands write


def test_demo_writes_a_report_on_checkpoints_that_describe_themselves(folder, cli, monkeypatch):
    widths = (64, 3, 10)  # the demo's own network takes half a minute
    monkeypatch.setattr(training, "_STEPS", 20)
    monkeypatch.setattr(training, "_WIDTHS", widths)
    described = {**training._PROBLEM, "model_args": {**training._PROBLEM["model_args"], "widths": widths}}
    monkeypatch.setattr(training, "_PROBLEM", described)
    monkeypatch.setattr(run, "train_digits", lambda *a, **k: training.train_digits(*a, **k, num_checkpoints=2))
    demo = cli("demo", "--out", "report")
    assert demo.status == 0 and demo.err == ""
    assert {p.name for p in (folder / "report").iterdir()} == OWN | {"checkpoints"}
    entries = results("report")["checkpoints"]
    saved = [str(p.relative_to(folder)) for p in sorted((folder / "report" / "checkpoints").iterdir())]
    assert [entry["problem"]["checkpoint"] for entry in entries] == saved and len(saved) == 2

    again = cli("report", saved[1], "--data", "digits", "--out", "again")
    assert again.status == 0, again.err
    found = results("again")
    for key in ("eigenvalue", "residual", "converged"):
        assert [row[key] for row in found["full"]["largest"]] == pytest.approx(
            [row[key] for row in entries[1]["full"]["largest"]], abs=1e-6
        )
    assert found["problem"]["sha256"] == entries[1]["problem"]["sha256"]
    assert found["full"]["trace"]["value"] == pytest.approx(entries[1]["full"]["trace"]["value"], rel=1e-5)

    monkeypatch.setattr(run, "train_digits", lambda *a, **k: pytest.fail("trained although the report is there"))
    assert "--force" in one_sentence(cli("demo", "--out", "report"), 2)


def test_the_saved_analysis_reads_back_and_the_report_names_its_command(folder, cli):
    shown = cli("report", "a.pt", "--out", "o", "--num-eigenvalues", 3, "--seed", 5)
    assert shown.status == 0 and shown.err == ""
    assert {p.name for p in (folder / "o").iterdir()} == OWN
    (analysis,) = load_analyses(json_path="o/results.json", npz_path="o/spectra.npz")
    assert analysis.full.n == 43 and list(analysis.layers) == ["fc1", "fc2"]
    assert analysis.problem["seed"] == 5 and len(analysis.full.largest) == 3
    largest = analysis.full.largest
    errors = float(largest.reach[-1]), float(largest.data_stderr[-1])
    top = format_headline(float(largest.eigenvalues[-1]), *errors, 24).replace("±", "+-")
    assert top.endswith("from 24 examples")
    assert shown.out.startswith(f"o/report.html: largest eigenvalue {top}, trace ") and shown.out.isascii()
    assert (
        "pyhessian-spectra report a.pt --out o --num-eigenvalues 3 --seed 5" in (folder / "o/report.html").read_text()
    )


def test_several_checkpoints_come_as_a_list_in_the_order_given(folder, cli):
    assert cli("report", "b.pt", "a.pt", "--out", "o", *FAST).status == 0
    entries = results("o")["checkpoints"]
    assert [entry["problem"]["checkpoint"] for entry in entries] == ["b.pt", "a.pt"]
    assert [entry["problem"]["step"] for entry in entries] == [1, 0]


def test_labels_and_a_title_are_what_the_page_calls_things(folder, cli):
    named = ("--label", "before", "--label", "after", "--title", "What training does")
    assert cli("report", "a.pt", "b.pt", "--out", "o", *FAST, *named).status == 0
    assert [entry["problem"]["label"] for entry in results("o")["checkpoints"]] == ["before", "after"]
    page = Path("o/report.html").read_text()
    assert "<title>What training does</title>" in page and "<h2>after</h2>" in page


def test_more_eigenvalues_than_there_are_gives_all_of_them(folder, cli):
    for limit in (3000, 0):  # built as a matrix, and asked for without one
        assert (
            cli("report", "a.pt", "--out", f"o{limit}", "--num-eigenvalues", 5000, "--exact-limit", limit).status == 0
        )
        full = results(f"o{limit}")["full"]
        assert len(full["largest"]) == 43
        assert sum(row["eigenvalue"] for row in full["largest"]) == pytest.approx(full["trace"]["value"], rel=1e-4)


def test_options_reach_the_analysis(folder, cli):
    arguments = ("--dtype", "float64", "--batch-size", 5, "--num-examples", 12, "--mode", "train", "--loss", "mse")
    assert cli("report", "a.pt", "--out", "o", *FAST, *arguments, "--params", "fc2").status == 0
    problem = results("o")["problem"]
    assert (problem["dtype"], problem["N"], problem["mode"], problem["n"]) == ("float64", 12, "train", 15)
    assert problem["loss"] == "mse"


def test_the_matrix_is_chosen_and_the_traces_of_hessian_and_parts_add_up(folder, cli):
    traces, tops = {}, set()
    for matrix in ("hessian", "ggn", "residual", "fisher"):
        shown = cli("report", "a.pt", "--matrix", matrix, "--dtype", "float64", "--layers", "none", "--out", matrix)
        assert shown.status == 0, shown.err
        found = results(matrix)
        traces[found["problem"]["matrix"]] = found["full"]["trace"]["value"]
        tops.add(found["full"]["largest"][0]["eigenvalue"])
        assert cli("doctor", "a.pt", "--matrix", matrix).status == 0
    assert list(traces) == ["Hessian", "GGN", "Residual", "EmpiricalFisher"]
    assert traces["Hessian"] == pytest.approx(traces["GGN"] + traces["Residual"], rel=1e-10)
    assert len(tops) == 4
    assert "Gauss-Newton residual H − G" in (folder / "residual/report.html").read_text()


def test_a_problem_of_ones_own_is_analysed(folder, cli):
    write_problem(folder)
    assert cli("report", "a.pt", "--problem", "own:risk", "--out", "o", *FAST).status == 0
    assert results("o")["problem"]["n"] == 43
    assert "together with problem" in one_sentence(
        cli("report", "a.pt", "--problem", "own:risk", "--data", "digits", "--out", "p"), 2
    )


# A ResNet20 saved through DataParallel


def resnet_checkpoint(path: Path) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cifar_resnet(20).eval()
    torch.save(torch.nn.DataParallel(model).state_dict(), path)
    return model


def top_eigenvalue(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """By scipy and two calls of torch.autograd, without this package."""
    model = model.double()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])

    def product(v):
        columns = torch.autograd.grad(flat, parameters, torch.from_numpy(v.reshape(-1)), retain_graph=True)
        return torch.cat([c.reshape(-1) for c in columns]).numpy()

    n = flat.numel()
    hessian = scipy.sparse.linalg.LinearOperator((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    return float(scipy.sparse.linalg.eigsh(hessian, 1, which="LA", tol=1e-5, v0=start)[0][0])


def write_cifar(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 10, (count, 1)), rng.integers(0, 256, (count, 3072))], axis=1)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(rows.astype(np.uint8).tobytes())
    return folder


def test_top_eigenvalue_of_a_data_parallel_resnet20_equals_an_independent_eigsh(tmp_path, cli):
    """On photographs where they are at hand, on made images elsewhere."""
    real = _DATA / "cifar-10-batches-bin"
    data = real if real.exists() else write_cifar(tmp_path, 2)
    model = resnet_checkpoint(tmp_path / "resnet20.pth")
    arguments = ("--model", "resnet20", "--data", data, "--num-examples", 2, "--num-probes", 2, "--num-steps", 10)
    edges = ("--num-eigenvalues", 1, "--layers", "none", "--tol", 1e-3)
    shown = cli("report", tmp_path / "resnet20.pth", *arguments, *edges, "--out", tmp_path / "o")
    assert shown.status == 0, shown.err
    found = results(tmp_path / "o")
    assert found["problem"]["n"] == sum(p.numel() for p in model.parameters())

    raw = np.frombuffer((data / "data_batch_1.bin").read_bytes()[: 2 * 3073], np.uint8).reshape(2, 3073)
    pixels = torch.from_numpy(raw[:, 1:].reshape(2, 3, 32, 32) / 255.0)
    mean, std = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in CIFAR_STATISTICS)
    top = top_eigenvalue(model, (pixels - mean) / std, torch.from_numpy(raw[:, 0].astype(np.int64)))
    assert found["full"]["largest"][0]["eigenvalue"] == pytest.approx(top, rel=1e-4)


# mean and standard deviation of the channels of the 50,000 training images
CIFAR_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


# Wrong inputs


def wrong_checkpoints() -> dict[str, tuple[str, ...]]:
    return {
        "nowhere.pt": ("no checkpoint at nowhere.pt",),
        "truncated.pt": ("truncated.pt", "truncated or damaged"),
        "empty.pt": ("empty.pt is empty",),
        "unexpected.pt": ("1 unexpected (first extra.weight)",),
        "missing.pt": ("1 missing (first fc2.bias)",),
        "shapes.pt": ("1 of another shape (first fc2.bias: (4,) in the file, (3,) in the model)",),
        "nan.pt": ("NaN or infinity in fc1.weight",),
        "pickled.pt": ("pickled", "--trust-pickle"),
    }


@pytest.mark.parametrize("name", wrong_checkpoints())
@pytest.mark.parametrize("before", [(), ("a.pt",)])
def test_a_wrong_checkpoint_is_told_before_anything_starts(folder, cli, monkeypatch, name, before):
    state = small_mlp().state_dict()
    torch.save(state, folder / "bare.pt")
    whole = (folder / "bare.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    torch.save({**state, "extra.weight": torch.zeros(2)}, folder / "unexpected.pt")
    torch.save({key: value for key, value in state.items() if key != "fc2.bias"}, folder / "missing.pt")
    torch.save({**state, "fc2.bias": torch.zeros(4)}, folder / "shapes.pt")
    torch.save({**state, "fc1.weight": torch.full((4, 6), torch.nan)}, folder / "nan.pt")
    torch.save(small_mlp(), folder / "pickled.pt")
    monkeypatch.setattr(request, "analyze", lambda *a, **k: pytest.fail("an analysis started"))
    held = snapshot(folder)
    args = ("--model", "mlp", "--model-arg", "widths=[6,4,3]", "--data", "small.npz", "--out", "o")
    sentence = one_sentence(cli("report", *before, name, *args), 2)
    assert all(part in sentence for part in wrong_checkpoints()[name]), sentence
    assert snapshot(folder) == held


def wrong_arrays() -> dict[str, dict[str, np.ndarray]]:
    x, y = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32), np.arange(9) % 3
    return {
        "labels.npz": {"x": x, "y": np.where(np.arange(9) == 7, 5, y)},
        "negative.npz": {"x": x, "y": np.where(np.arange(9) == 7, -2, y)},
        "nan.npz": {"x": np.where(np.arange(9)[:, None] == 4, np.nan, x), "y": y},
        "none.npz": {"x": x[:0], "y": y[:0]},
        "keys.npz": {"a": x, "b": y},
        "uneven.npz": {"x": x, "y": y[:5]},
        "wide.npz": {"x": np.c_[x, x], "y": y},
    }


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("nowhere", ("no data at nowhere",)),
        (".", ("holds no dataset",)),
        ("a.pt", ("a.pt",)),
        ("labels.npz", ("label 7 of labels", "is 5, outside the 3 classes")),
        ("negative.npz", ("label 7 of negative", "is -2, outside")),
        ("nan.npz", ("input 4 of nan.npz holds NaN",)),
        ("none.npz", ("holds no training examples",)),
        ("keys.npz", ("has the arrays a, b",)),
        ("uneven.npz", ("9", "5")),
        ("wide.npz", ("(12,)",)),
    ],
)
def test_wrong_data_are_told_in_a_sentence(folder, cli, data, parts):
    for name, arrays in wrong_arrays().items():
        np.savez(folder / name, **arrays)
    held = snapshot(folder)
    sentence = one_sentence(cli("report", "a.pt", "--data", data, "--out", "o"), 2)
    assert all(part in sentence for part in parts), sentence
    assert snapshot(folder) == held


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--model", "nonsense"), "no built-in model 'nonsense'"),
        (("--loss", "hinge"), "no built-in loss 'hinge'"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--layers", "nosuch"), "'nosuch'"),
        (("--params", "nosuch*"), "'nosuch*'"),
        (("--model-arg", "width"), "KEY=VALUE"),
        (("--model-arg", "nosuch=1"), "nosuch=1"),
        (("--tol", "nan"), "tol"),
        (("--label", "a", "--label", "b"), "2 times for 1 checkpoints"),
        (("--prefix", "net."), "names that begin with"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(folder, cli, arguments, part):
    held = snapshot(folder)
    assert part in one_sentence(cli("report", "a.pt", *arguments, "--out", "o"), 2)
    assert snapshot(folder) == held


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("12B", 12), (" 2 k", 2**11), ("1.5MiB", 3 * 2**19), ("4GB", 2**32), (".5t", 2**39), ("3.", 3)],
)
def test_sizes_are_read_with_their_units(text, number):
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "GiB", "1.2.3", "-1", "4 apples", "1iB"])
def test_what_is_no_size_is_refused(folder, cli, text):
    result = cli("doctor", "a.pt", f"--memory-budget={text}")
    assert result.status == 2 and "write it as 512MiB" in result.err


@pytest.mark.parametrize(
    "arguments",
    [(), ("nosuch",), ("report", "--out", "o"), ("report", "a.pt"), ("report", "a.pt", "--num-probes", "1")],
)
def test_wrong_usage_has_status_two_and_shows_the_usage(folder, cli, arguments):
    result = cli(*arguments)
    assert result.status == 2 and "Usage:" in result.err


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        ("F.cross_entropy(z, y) * float('nan')", "batch 0"),
        ("Once.apply(z).mean()", "Once has no second derivative"),
        ("F.cross_entropy(Once.apply(z), y)", "Once has no second derivative"),
        ("F.cross_entropy(z + torch.rand(24, 3), y)", "differ"),
        ("F.cross_entropy(z, y + 3)", "batch 0"),
        ("F.cross_entropy(z[:, :2, None], y)", "batch 0"),
    ],
)
def test_a_loss_that_cannot_be_analysed_is_told_in_a_sentence(folder, cli, loss, part):
    write_problem(folder, loss)
    once = """
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g
    """
    with open(folder / "own.py", "a") as file:
        file.write(textwrap.dedent(once))
    sentence = one_sentence(cli("report", "a.pt", "--problem", "own:risk", "--out", "o"), 2)
    assert part in sentence, sentence
    assert not (folder / "o").exists() and not list(folder.glob(".o*"))


def test_a_model_without_trainable_parameters_is_refused(folder, cli):
    write_problem(folder)
    text = (folder / "own.py").read_text().replace("    data =", "    model.requires_grad_(False)\n    data =")
    (folder / "own.py").write_text(text)
    assert "trainable" in one_sentence(cli("report", "a.pt", "--problem", "own:risk", "--out", "o"), 2)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 TB")]
)
def test_out_of_memory_says_what_to_lower(folder, cli, monkeypatch, error):
    def greedy(*args, **kwargs):
        raise error

    monkeypatch.setattr(request, "analyze", greedy)
    sentence = one_sentence(cli("report", "a.pt", "--out", "o"), 1)
    assert "lower --batch-size" in sentence
    assert not (folder / "o").exists()


def test_an_unforeseen_error_is_one_sentence_that_tells_how_to_see_more(folder, cli, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(request, "analyze", broken)
    assert "PYHESSIAN_SPECTRA_TRACEBACK=1" in one_sentence(cli("report", "a.pt", "--out", "o"), 1)


# doctor, help, and the program as a process of its own


def test_doctor_prints_what_it_found_and_returns_whether_all_can_be_analysed(folder, cli):
    fine = cli("doctor", "a.pt", "b.pt")
    assert fine.status == 0 and fine.err == ""
    assert fine.out.count("n = 43 parameters, N = 24 examples") == 2 and "products of" in fine.out
    held = snapshot(folder)
    bad = cli("doctor", "nowhere.pt", "a.pt")
    assert bad.status == 2 and "FAIL  there is no checkpoint at nowhere.pt" in bad.out
    assert "n = 43 parameters" in bad.out  # the others are examined all the same
    assert snapshot(folder) == held


def test_doctor_warns_of_what_an_analysis_would_have_to_know(folder, cli):
    write_problem(folder, "F.cross_entropy(z[:, :3] * 1.0, y)")
    text = (folder / "own.py").read_text()
    text = text.replace(
        "    data =", "    model.extra = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())\n    data ="
    )
    (folder / "own.py").write_text(text)
    found = cli("doctor", "a.pt", "--problem", "own:risk")
    assert found.status == 0
    assert "WARN" in found.out and "extra.0.weight" in found.out and "dropout" in found.out


@pytest.mark.parametrize("command", [(), ("demo",), ("report",), ("doctor",)])
def test_every_option_is_explained(command):
    shown = CliRunner().invoke(commands, [*command, "--help"])
    assert shown.exit_code == 0 and shown.output.startswith("Usage:")
    here = commands.commands[command[0]] if command else commands
    for parameter in here.params:
        if parameter.param_type_name == "option":
            assert parameter.help and parameter.opts[-1] in shown.output, parameter


def test_the_module_runs_as_a_program_and_sigint_ends_it(folder):
    write_problem(folder, "(print('started', flush=True), time.sleep(60))[0] or F.cross_entropy(z, y)")
    (folder / "own.py").write_text("import time\n" + (folder / "own.py").read_text())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pyhessian_spectra", "report", "a.pt", "--problem", "own:risk", "--out", "o"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted before anything was finished" in err and "Traceback" not in err
    assert not (folder / "o").exists() and not list(folder.glob(".o*"))


def test_training_and_test_examples_stand_side_by_side(folder, cli):
    torch.manual_seed(0)
    save_checkpoint("d.pt", MLP((64, 2, 10)), problem={"model": "mlp", "data": "digits"})
    shown = cli("report", "d.pt", "--split", "both", "--num-examples", 40, "--out", "o", *FAST)
    assert shown.status == 0
    both = results("o")["checkpoints"]
    assert [one["problem"]["split"] for one in both] == ["train", "test"]
    for one in both:
        split = one["problem"]["split"]
        alone = cli("report", "d.pt", "--split", split, "--num-examples", 40, "--out", split, *FAST)
        assert alone.status == 0 and results(split)["full"]["largest"] == one["full"]["largest"]
    page = (folder / "o/report.html").read_text()
    assert "d.pt, train" in page and "d.pt, test" in page
    found = cli("doctor", "d.pt", "--split", "both", "--num-examples", 40)
    assert found.status == 0 and "d.pt train" in found.out and "d.pt test" in found.out
