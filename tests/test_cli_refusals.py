"""What the command line refuses, in one sentence and with the right exit status."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch
from commands import one_sentence, small_mlp, snapshot, write_problem

from pyhessian_spectra.cli import request
from pyhessian_spectra.cli.main import size

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
