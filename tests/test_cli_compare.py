"""The command that compares: what it takes, what it leaves out and says, and that processes share its folder safely."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from commands import FAST, one_sentence, small_mlp, snapshot

from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.cli import request
from pyhessian_spectra.cli.inputs import read_given
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import save_checkpoint
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.report import comparison


@pytest.fixture
def runs(folder):
    """Two seeds with three checkpoints each, in folders of their own."""
    for seed in (0, 1):
        for step in (0, 5, 10):
            model = small_mlp(seed)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 + step / 20)
            problem = {"model": "mlp", "data": "small.npz"}
            path = Path(f"runs/seed-{seed}/step-{step}.pt")
            save_checkpoint(path, model, problem=problem, step=step, test_error=1 / (1 + step))
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time, and tests/test_comparison_page.py looks at them."""

    class Blank:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    blank = {"path": "figures/trace.svg", "svg": "", "alt": "", "data_uri": "data:,"}
    monkeypatch.setattr(comparison, "plots", Blank())
    monkeypatch.setattr(comparison, "make_figures", lambda axes, alts: dict.fromkeys(axes, blank))


def table(out="o") -> list[dict[str, str]]:
    with open(Path(out) / "table.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def labels(out="o") -> list[str]:
    return list(dict.fromkeys(row["checkpoint"] for row in table(out)))


def test_a_pattern_is_compared_in_the_order_of_its_numbers_with_paired_differences(runs, cli, undrawn):
    shown = cli("compare", "runs/seed-*/step-*.pt", "--out", "o", *FAST)
    assert shown.status == 0, shown.err
    assert labels() == [f"seed-{s}/step-{t}.pt" for s in (0, 1) for t in (0, 5, 10)]
    assert {row["run"] for row in table()} == {"seed-0", "seed-1"}
    moved = [row for row in table() if row["quantity"] == "trace, difference from seed-0/step-0.pt"]
    assert len(moved) == 10 and {row["kind"] for row in moved} >= {"standard error, data"}
    page = Path("o/report.html").read_text()
    assert "6 checkpoints of 2 runs compared" in page and "pyhessian-spectra compare" in page
    assert {path.name for path in Path("o").iterdir()} == {
        "analyses", "comparison.json", "figures", "report.html", "table.csv"
    }  # fmt: skip


def test_what_was_analysed_is_not_analysed_again_but_for_files_that_changed(runs, cli, monkeypatch, undrawn):
    assert cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST).status == 0
    before, calls = Path("o/table.csv").read_bytes(), []
    real = request.analyze
    monkeypatch.setattr(request, "analyze", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST).status == 0
    assert not calls and Path("o/table.csv").read_bytes() == before
    os.utime("runs/seed-0/step-5.pt", ns=(1, 1))
    assert cli("compare", "runs/seed-*/*.pt", "--out", "o", *FAST).status == 0
    assert len(calls) == 4 and len(labels()) == 6


@pytest.mark.parametrize("end", [".json", ".npz"])
def test_a_damaged_analysis_of_the_folder_is_told_and_made_again_by_the_same_command(runs, cli, undrawn, end):
    command = "compare", "runs/seed-*/step-0.pt", "runs/seed-0/step-5.pt", "--out", "o", *FAST
    assert cli(*command).status == 0
    before = Path("o/table.csv").read_bytes()
    broken = min(Path("o/analyses").glob(f"*{end}"))
    broken.write_bytes(broken.read_bytes()[:-400])
    shown = cli(*command)
    assert shown.status == 1 and "the same command makes it again" in shown.err and len(labels()) == 2
    assert cli(*command).status == 0
    assert Path("o/table.csv").read_bytes() == before


def test_saved_results_cost_no_product_and_stand_beside_checkpoints(runs, cli, monkeypatch, undrawn):
    assert cli("report", "runs/seed-0/step-0.pt", "runs/seed-0/step-5.pt", "--out", "saved", *FAST).status == 0
    calls, real = [], request.analyze
    monkeypatch.setattr(request, "analyze", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert cli("compare", "saved", "--out", "o").status == 0
    assert not calls and labels() == ["step-0.pt", "step-5.pt"]
    assert cli("compare", "saved/results.json", "runs/seed-1/step-0.pt", "--out", "p", *FAST).status == 0
    assert len(calls) == 1 and len(labels("p")) == 3
    assert "other data" not in Path("p/report.html").read_text()


def test_checkpoints_that_fail_are_listed_with_their_reasons_and_the_rest_is_compared(runs, cli, undrawn):
    broken = small_mlp()
    with torch.no_grad():
        broken.fc1.weight[0, 0] = torch.nan
    save_checkpoint(Path("runs/seed-0/step-7.pt"), broken, problem={"model": "mlp", "data": "small.npz"}, step=7)
    Path("runs/seed-0/step-8.pt").write_bytes(b"nothing")
    shown = cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST)
    assert shown.status == 1 and "step-7.pt" in shown.err and "NaN" in shown.err
    page = Path("o/report.html").read_text()
    assert "Not analysed: 2" in page and "step-8.pt" in page and "NaN" in page
    assert labels() == ["step-0.pt", "step-5.pt", "step-10.pt"]
    save_checkpoint(Path("runs/seed-0/step-7.pt"), small_mlp(), problem={"model": "mlp", "data": "small.npz"}, step=7)
    os.unlink("runs/seed-0/step-8.pt")
    assert cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST).status == 0
    assert "Not analysed" not in Path("o/report.html").read_text() and len(labels()) == 4


def test_a_csv_of_runs_gives_columns_to_correlate_and_labels(runs, cli, undrawn):
    rows = ["path,label,seed,final_loss,note"]
    for s in (0, 1):
        rows += [f"runs/seed-{s}/step-{t}.pt,run {s} at {t},{s},{0.3 * s + t / 10 - (t - 5) ** 2 / 50},x" for t in
                 (0, 5, 10)]  # fmt: skip
    Path("runs.csv").write_text("\n".join([*rows, "runs/gone.pt,lost,2,1.0,y"]) + "\n")
    shown = cli("compare", "runs.csv", "--out", "o", *FAST, "--correlate", "final_loss", "--correlate", "note:trace")
    assert shown.status == 1 and "gone.pt" in shown.err
    assert labels() == [f"run {s} at {t}" for s in (0, 1) for t in (0, 5, 10)]
    given = {(row["checkpoint"], row["quantity"]): row["value"] for row in table() if row["block"] == "given"}
    assert given["run 1 at 5", "final_loss"] == "0.8" and given["run 1 at 5", "training_seed"] == "1.0"
    page = Path("o/report.html").read_text()
    assert "none: 2 runs, and five are needed" in page and "final_loss" in page
    assert "No correlation of trace with note" in page
    assert {row["run"] for row in table()} == {"seed-0, seed 0", "seed-1, seed 1"}


def test_other_architectures_and_other_examples_are_compared_as_far_as_it_goes(runs, cli, undrawn):
    rng = np.random.default_rng(1)
    np.savez("other.npz", x=rng.standard_normal((24, 6)).astype(np.float32), y=np.arange(24) % 3)
    assert cli("report", "a.pt", "--data", "other.npz", "--out", "saved", *FAST).status == 0
    wide = MLP((6, 5, 3), activation="tanh")
    arguments = {"widths": (6, 5, 3), "activation": "tanh"}
    save_checkpoint("wide.pt", wide, problem={"model": "mlp", "model_args": arguments, "data": "small.npz"})
    assert cli("compare", "a.pt", "wide.pt", "saved", "--out", "o", *FAST).status == 0
    page = Path("o/report.html").read_text()
    assert "43 and 53 coordinates" in page and "other data" in page


def test_the_reference_is_chosen_by_label_or_the_end_of_its_path(runs, cli, undrawn):
    given = ("compare", "runs/seed-*/*.pt", "--out", "o", *FAST, "--reference")
    assert cli(*given, "seed-1/step-5.pt").status == 0
    assert "Beside seed-1/step-5.pt" in Path("o/report.html").read_text()
    assert "it is none of those given" in one_sentence(cli(*given, "seed-7/step-5.pt"), 2)
    assert "are called step-5.pt, such as" in one_sentence(cli(*given, "step-5.pt"), 2)


def test_what_is_named_twice_is_taken_once_and_said(runs):
    given, told = read_given(["a.pt", "./a.pt", "b.pt"])
    assert [each.path.name for each in given] == ["a.pt", "b.pt"]
    assert told == ["a.pt was given more than once and is taken once."]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nothing-*.pt",), "no file matches 'nothing-*.pt'"),
        (("gone.pt",), "gone.pt does not exist"),
        (("runs",), "without results.json; name its checkpoints with a pattern"),
        (("bad.csv",), "needs a column 'path' with a checkpoint or results in each row; it has file, seed"),
        (("empty.csv",), "it has no rows"),
        (("twice.csv",), "two columns 'error'"),
        (("short.csv",), "row 2 of short.csv has 1 cells under 2 columns"),
        (("unnamed.csv",), "row 1 of unnamed.csv has no path"),
    ],
)
def test_wrong_inputs_get_a_sentence_before_anything_is_written(runs, cli, arguments, words):
    Path("bad.csv").write_text("file,seed\na.pt,0\n")
    Path("empty.csv").write_text("path,seed\n")
    Path("twice.csv").write_text("path,error,error\na.pt,0,1\n")
    Path("short.csv").write_text("path,error\na.pt,0\nb.pt\n")
    Path("unnamed.csv").write_text("path,error\n,0\n")
    before = snapshot(runs)
    assert words in one_sentence(cli("compare", *arguments, "--out", "o"), 2)
    assert snapshot(runs) == before


def test_a_folder_of_something_else_or_of_other_options_is_left_alone(runs, cli, undrawn):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    sentence = one_sentence(cli("compare", "a.pt", "b.pt", "--out", "mine", *FAST), 2)
    assert "mine holds notes.txt and no comparison" in sentence
    assert cli("compare", "a.pt", "b.pt", "--out", "o", *FAST).status == 0
    before = snapshot(Path("o"))
    sentence = one_sentence(cli("compare", "a.pt", "b.pt", "--out", "o", *FAST, "--seed", 1), 2)
    assert "seed = 0, and now 1 is asked for" in sentence and snapshot(Path("o")) == before


def test_one_analysis_is_no_comparison(folder, cli):
    assert "at least two analyses: there is one" in cli("compare", "a.pt", "--out", "o", *FAST).err


def test_what_another_process_is_at_is_left_to_it_and_whoever_finishes_last_writes_the_page(
    runs, cli, monkeypatch, undrawn
):
    assert cli("compare", "a.pt", "b.pt", "--out", "o", *FAST).status == 0
    page, locks = Path("o/report.html"), sorted(Path("o/analyses").glob("*.lock"))
    (key,) = {lock.stem for lock in locks if (Path("o/analyses") / f"{lock.stem}.npz").exists()} - {
        min(lock.stem for lock in locks if (Path("o/analyses") / f"{lock.stem}.npz").exists())
    }
    for name in (f"{key}.npz", f"{key}.json"):
        (Path("o/analyses") / name).unlink()
    page.unlink()
    with filelock.FileLock(f"o/analyses/{key}.lock"):  # as of a process that is at it
        shown = cli("compare", "a.pt", "b.pt", "--out", "o", *FAST)
        assert shown.status == 0 and "1 of 2 analyses are with other processes" in shown.out and not page.exists()
    assert cli("compare", "a.pt", "b.pt", "--out", "o", *FAST).status == 0 and page.exists()


def test_processes_that_start_together_share_the_work_and_the_page_is_whole(runs):
    command = [sys.executable, "-m", "pyhessian_spectra", "compare", "runs/seed-*/*.pt", "--out", "o", *map(str, FAST)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for each in started:
        _, err = each.communicate(timeout=300)
        assert each.returncode == 0, err.decode()
    assert len(labels()) == 6 and "6 checkpoints of 2 runs" in Path("o/report.html").read_text()
    files = sorted(Path("o/analyses").glob("*.json"))
    assert len(files) == 6 and all(SpectralAnalysis.load(file).full.n == 43 for file in files)
    assert not list(Path("o/analyses").glob("*.journal"))


def test_an_interrupted_comparison_goes_on_from_the_products_it_kept(runs, cli, monkeypatch, undrawn):
    real, seen = request.analyze, []

    def stopped(*args, **kwargs):
        seen.append(time.time())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(request, "analyze", stopped)
    assert cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST).status == 130
    assert cli("compare", "runs/seed-0/*.pt", "--out", "o", *FAST).status == 0
    assert len(seen) == 4  # the first was finished before, the second begun twice


def test_an_unreadable_table_gets_a_sentence(folder):
    Path("t.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(InputError, match="cannot be read as a CSV of runs"):
        read_given(["t.csv"])


def test_columns_that_an_analysis_says_of_itself_are_of_the_training(runs):
    Path("runs.csv").write_text("path,loss,N,matrix,test_error\na.pt,0.5,3,x,0.1\n")
    (given,), _ = read_given(["runs.csv"])
    assert given.told == {"training_loss": 0.5, "training_N": 3, "training_matrix": "x", "test_error": 0.1}
