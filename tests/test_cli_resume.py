"""What the command line never loses: reports, checkpoints, and products of a run that was interrupted."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from analyses import exact_analysis
from commands import FAST, one_sentence, results, snapshot, write_problem

from pyhessian_spectra import files
from pyhessian_spectra.analysis import saved as analysis_saved
from pyhessian_spectra.cli import output, run
from pyhessian_spectra.cli.threads import choose_threads
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import load_problem, save_checkpoint
from pyhessian_spectra.runs.doctor import examine

# Reports


def test_a_report_is_replaced_only_by_force_and_nothing_else_ever(folder, cli):
    assert cli("report", "a.pt", "--out", "o", *FAST).status == 0
    held = snapshot(folder)
    assert "--force" in one_sentence(cli("report", "b.pt", "--out", "o", *FAST), 2)
    assert snapshot(folder) == held
    assert cli("report", "b.pt", "--out", "o", "--force", *FAST).status == 0
    assert results("o")["problem"]["checkpoint"] == "b.pt"
    assert {p.name for p in folder.iterdir()} == {"a.pt", "b.pt", "small.npz", "o"}

    for mine in ("o/notes.txt", "o/figures/mine.png", "o/checkpoints/best.pt"):
        (folder / mine).parent.mkdir(exist_ok=True)
        (folder / mine).write_text("mine")
        held = snapshot(folder)
        for command in (("report", "a.pt"), ("demo",)):
            one_sentence(cli(*command, "--out", "o", "--force"), 2)
        assert snapshot(folder) == held
        (folder / mine).unlink()


def test_force_never_takes_the_checkpoints_that_a_report_beside_them_is_on(folder, cli):
    """The demo keeps its checkpoints in its report's directory."""
    assert cli("report", "a.pt", "--out", "o", *FAST).status == 0
    (folder / "o" / "checkpoints").mkdir()
    (folder / "a.pt").rename(folder / "o" / "checkpoints" / "step-00010.pt")
    held = snapshot(folder)
    sentence = one_sentence(cli("report", "o/checkpoints/step-00010.pt", "--out", "o", "--force", *FAST), 2)
    assert "o holds checkpoints" in sentence
    assert snapshot(folder) == held


def test_a_directory_that_is_no_report_is_not_replaced(folder, cli):
    (folder / "o" / "checkpoints").mkdir(parents=True)
    (folder / "o" / "checkpoints" / "step-100.pt").write_text("of another program")
    assert "no results.json" in one_sentence(cli("demo", "--out", "o", "--force"), 2)
    (folder / "file").write_text("mine")
    assert "is a file" in one_sentence(cli("report", "a.pt", "--out", "file", "--force"), 2)
    assert "cannot be written" in one_sentence(cli("report", "a.pt", "--out", "file/o"), 2)
    (folder / "here").mkdir()
    os.chdir("here")
    assert "current directory" in one_sentence(cli("report", "../a.pt", "--data", "../small.npz", "--out", "."), 2)


def test_a_link_to_the_output_directory_stays_a_link(folder, cli):
    (folder / "disk").mkdir()
    (folder / "o").symlink_to("disk")
    for _ in range(2):
        assert cli("report", "a.pt", "--out", "o", "--force", *FAST).status == 0
    assert (folder / "o").is_symlink() and (folder / "disk" / "results.json").exists()


def test_what_another_program_has_written_meanwhile_is_kept_and_so_is_the_report(folder):
    with (
        pytest.raises(InputError, match=re.escape("the report is in ")) as error,
        output.staged(Path("o"), force=False) as stage,
    ):
        (stage.new / "results.json").write_text("second")
        (folder / "o").mkdir()
        (folder / "o" / "results.json").write_text("first")
    assert (folder / "o" / "results.json").read_text() == "first"
    assert (folder / "o.1" / "results.json").read_text() == "second" and str(folder / "o.1") in str(error.value)
    assert not list(folder.glob(".o*"))


def test_two_runs_at_the_same_time_do_not_write_to_one_directory(folder, cli):
    with output.staged(folder / "o", force=False) as stage:
        (stage.new / "results.json").write_text("{}")
        held = snapshot(folder)
        sentence = one_sentence(cli("report", "a.pt", "--out", "o", *FAST), 2)
        assert "another run is writing o" in sentence and "--out" in sentence
        assert snapshot(folder) == held
        assert cli("report", "a.pt", "--out", "p", *FAST).status == 0
    assert (folder / "o" / "results.json").exists()
    assert cli("report", "a.pt", "--out", "o", "--force", *FAST).status == 0


def test_a_swap_that_fails_puts_the_old_report_back(folder, monkeypatch):
    (folder / "o").mkdir()
    (folder / "o" / "results.json").write_text("old")
    rename = Path.rename

    def failing(self, target):
        if self.name == "new" and Path(target).name == "o":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match="No space left"), output.staged(folder / "o", force=True) as stage:
        (stage.new / "results.json").write_text("new")
    assert (folder / "o" / "results.json").read_text() == "old"
    assert [p.read_text() for p in folder.glob("o.*/results.json")] == ["new"]


KILLED = "F.cross_entropy(z, y) if checkpoint == 'a.pt' or len(calls) < 9 else {} or F.cross_entropy(z, y)"


@pytest.mark.parametrize(
    ("event", "status", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 130, "interrupted"),
        ("z.no_such_thing", 1, "AttributeError"),
        ("torch.full((), torch.nan) * z.sum()", 2, "NaN"),
        ("torch.empty(10**15).sum() * z.sum()", 1, "out of memory"),
    ],
)
def test_what_was_finished_before_the_second_checkpoint_failed_is_written_and_told(folder, cli, event, status, reason):
    # rebuilt for each product (--memory-budget 0), the loss is evaluated again and again, up to the event
    write_problem(folder, KILLED.format(event))
    args = ("--problem", "own:risk", "--memory-budget", 0, "--exact-limit", 0, "--out", "o", *FAST)
    sentence = one_sentence(cli("report", "a.pt", "b.pt", *args), status)
    assert sentence.startswith("b.pt (2 of 2): ") and reason in sentence and "what was finished is in o" in sentence
    found = results("o")
    assert found["problem"]["checkpoint"] == "a.pt"
    assert any("b.pt (2 of 2)" in note["text"] and reason in note["text"] for note in found["notes"])
    assert "b.pt (2 of 2)" in (folder / "o" / "report.html").read_text()
    assert sentence.endswith("and the same command with --force goes on from there")
    write_problem(folder, "F.cross_entropy(z, y)" if status != 2 else KILLED.format("F.cross_entropy(z, y)"))
    resumed = cli("report", "a.pt", "b.pt", *args, "--force")
    assert resumed.status == 0, resumed.err
    assert "a.pt (1 of 2): Resumed: the analysis was finished by an earlier run." in resumed.err.splitlines()
    assert len(results("o")["checkpoints"]) == 2 and not list(folder.glob(".o*"))


def test_layers_finished_before_ctrl_c_are_kept(folder, cli):
    write_problem(folder, "F.cross_entropy(z, y)")
    text = (folder / "own.py").read_text()
    text = text.replace("    return EmpiricalRisk(", "    return Stopping(")
    stopping = """
    class Stopping(EmpiricalRisk):
        def restrict(self, params):
            part = EmpiricalRisk.restrict(self, params)
            part.__class__ = Stopped if "fc2.weight" in part.layout.names else EmpiricalRisk
            return part

    class Stopped(EmpiricalRisk):
        def point(self):
            os.kill(os.getpid(), signal.SIGINT)
            return EmpiricalRisk.point(self)
    """
    (folder / "own.py").write_text(text + textwrap.dedent(stopping))
    args = ("--problem", "own:risk", "--exact-limit", 0, "--num-eigenvalues", 2, "--out", "o")
    sentence = one_sentence(cli("report", "a.pt", *args), 130)
    assert "1 of 2 layers" in sentence and "what was finished is in o" in sentence
    partial = results("o")
    assert list(partial["layers"]) == ["fc1"] and (folder / ".o.resume").exists()
    write_problem(folder)
    resumed = cli("report", "a.pt", *args, "--force")
    assert resumed.status == 0 and "Resumed: " in resumed.err
    whole = results("o")
    assert list(whole["layers"]) == ["fc1", "fc2"] and whole["full"] == partial["full"]
    assert not list(folder.glob(".o*"))


def test_ctrl_c_before_anything_was_finished_leaves_nothing(folder, cli):
    write_problem(folder, "os.kill(os.getpid(), signal.SIGINT) or F.cross_entropy(z, y)")
    held = set(snapshot(folder))
    result = cli("report", "a.pt", "--problem", "own:risk", "--out", "o")
    assert result.status == 130 and "before anything was finished" in result.err
    assert {name for name in snapshot(folder) if "__pycache__" not in name} == held


def test_a_full_disk_is_one_sentence_and_loses_no_product(folder, cli, monkeypatch):
    def full(path, write):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(analysis_saved, "write_whole", full)
        sentence = one_sentence(cli("report", "a.pt", "--out", "o", *FAST), 2)
    assert "No space left on device" in sentence and "make room" in sentence and not (folder / "o").exists()
    again = cli("report", "a.pt", "--out", "o", *FAST)
    assert again.status == 0 and "Resumed" in again.err + (folder / "o" / "report.html").read_text()


def test_a_disk_that_is_full_when_a_result_is_saved_is_one_sentence(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fdopen", lambda descriptor, mode: (os.close(descriptor), Full())[1])
    with pytest.raises(InputError, match=r"cannot be written to .*No space left on device; make room"):
        exact_analysis(n=50, layers=False).save(tmp_path / "a")
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "a.pt", torch.nn.Linear(2, 2), problem={"model": "mlp"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("slower", "best"), [("two threads", 1), ("one thread", 2)])
def test_the_faster_number_of_threads_is_taken_said_and_kept_for_a_run_that_resumes(
    monkeypatch, tmp_path, slower, best
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    class Risk:
        device, n = torch.device("cpu"), 100

        def gradient(self):
            time.sleep(0.02 if torch.get_num_threads() == (2 if slower == "two threads" else 1) else 0.001)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        told = choose_threads(Risk(), tmp_path / "threads")
        assert told.endswith(f"computing with {best}") and "with one thread" in told
        assert torch.get_num_threads() == best
        torch.set_num_threads(2)
        assert choose_threads(None, tmp_path / "threads") == "" and torch.get_num_threads() == best
        torch.set_num_threads(1)
        assert choose_threads(Risk()) == ""  # there is nothing to choose
    finally:
        torch.set_num_threads(before)


def test_the_doctor_says_which_number_of_threads_is_better_and_the_library_changes_none(folder, cli, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        examine(load_problem("a.pt").risk)
        assert torch.get_num_threads() == 2
        assert "with one thread and" in cli("doctor", "a.pt").out
    finally:
        torch.set_num_threads(before)


def test_numbers_survive_a_report_that_cannot_be_drawn(folder, cli, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no such colour")

    monkeypatch.setattr(run, "write_report", broken)
    sentence = one_sentence(cli("report", "a.pt", "--out", "o", *FAST), 1)
    assert "no such colour" in sentence and "what was finished is in o" in sentence
    assert results("o")["problem"]["checkpoint"] == "a.pt" and (folder / "o" / "spectra.npz").exists()


# Runs that are killed

KILL = "os.environ.get('KILLED') == f'{checkpoint} {len(calls)}' and os.kill(os.getpid(), signal.SIGKILL)"
KILL = f"{KILL} or F.cross_entropy(z, y)"
# every product evaluates the loss again, and little else does
SLOW = ("--problem", "own:risk", "--memory-budget", 0, "--exact-limit", 0, "--num-eigenvalues", 2, "--num-steps", 10)
SLOW = (*SLOW, "--gauss-newton", "never")


def killed(folder: Path, checkpoint: str, call: int) -> None:
    """Run the command as a process that sends itself SIGKILL at an evaluation of the loss."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "KILLED": f"{checkpoint} {call}"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, "-m", "pyhessian_spectra", "report", "a.pt", "b.pt", *map(str, SLOW), "--out", "o"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "o").exists()
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {
        "a.pt",
        "b.pt",
        "small.npz",
        "own.py",
        "w",
        ".o.resume",
    }


def without_timing(document: dict) -> dict:
    """What must be the same however often the run was interrupted."""
    entries = [dict(entry) for entry in document["checkpoints"]]
    for entry in entries:
        coupling = (entry["structure"]["coupling"] or {"num_products": 0})["num_products"]
        assert entry.pop("timing")["num_products"] == entry["full"]["num_products"] + coupling + sum(
            layer["num_products"] for layer in entry["layers"].values()
        )
        entry["notes"] = [note for note in entry["notes"] if note["kind"] != "resumed"]
    return {**document, "checkpoints": entries}


def test_a_run_that_is_killed_twice_ends_with_the_numbers_of_one_that_is_not(folder, cli):
    write_problem(folder, KILL)
    assert cli("report", "a.pt", "b.pt", *SLOW, "--out", "w").status == 0
    whole = results("w")
    rng = np.random.default_rng(0)
    first, second = (entry["full"]["num_products"] for entry in whole["checkpoints"])
    at = int(rng.integers(10, first)), int(rng.integers(second + 10, second + 40))
    killed(folder, "a.pt", at[0])
    killed(folder, "b.pt", at[1])
    resumed = cli("report", "a.pt", "b.pt", *SLOW, "--out", "o")
    assert resumed.status == 0, (at, resumed)
    finished, halfway = resumed.err.splitlines()
    assert finished == "a.pt (1 of 2): Resumed: the analysis was finished by an earlier run."
    used, total = map(int, re.fullmatch(r"b.pt \(2 of 2\): Resumed: (\d+) of its (\d+) products .*", halfway).groups())
    # eighteen evaluations are no products: one in three gradients, and those of the verification
    assert at[1] - 19 <= used < at[1] and total == whole["checkpoints"][1]["timing"]["num_products"], at
    assert without_timing(results("o")) == without_timing(whole), at
    with np.load("o/spectra.npz") as one, np.load("w/spectra.npz") as other:
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    assert not list(folder.glob(".o*"))


def interrupted(folder: Path, cli, *arguments) -> None:
    """The command of ``SLOW`` on ``a.pt``, ended by Ctrl-C within the whole network."""
    write_problem(folder, "len(calls) == 20 and os.kill(os.getpid(), signal.SIGINT) or F.cross_entropy(z, y)")
    sentence = one_sentence(cli("report", "a.pt", *SLOW, "--out", "o", *arguments), 130)
    assert sentence == "a.pt: interrupted; the same command goes on from there"
    assert not (folder / "o").exists() and len(list((folder / ".o.resume").glob("journal-*"))) == 1
    write_problem(folder)


def test_ctrl_c_within_the_whole_network_loses_no_product(folder, cli):
    interrupted(folder, cli)
    resumed = cli("report", "a.pt", *SLOW, "--out", "o")
    assert resumed.status == 0 and re.fullmatch(r"a.pt: Resumed: \d of its .*\n", resumed.err)
    assert not list(folder.glob(".o*"))


def test_other_settings_start_afresh_and_say_so(folder, cli):
    interrupted(folder, cli)
    other = cli("report", "a.pt", *SLOW, "--out", "o", "--seed", 3)
    assert other.status == 0 and other.err.startswith("a.pt: Started afresh: ") and "another seed" in other.err
    assert any(note["kind"] == "afresh" for note in results("o")["notes"])


def test_what_was_kept_is_not_used_where_that_is_asked(folder, cli):
    interrupted(folder, cli)
    other = cli("report", "a.pt", *SLOW, "--out", "o", "--fresh")
    assert (other.status, other.err) == (0, "") and not list(folder.glob(".o*"))


def test_a_checkpoint_that_is_given_twice_is_analysed_twice(folder, cli):
    done = cli("report", "a.pt", "a.pt", "--out", "o", *FAST)
    assert (done.status, done.err) == (0, "")
    one, two = results("o")["checkpoints"]
    assert one["full"] == two["full"]


def test_a_report_that_was_moved_away_by_a_run_that_was_killed_is_put_back(folder, cli):
    assert cli("report", "a.pt", "--out", "o", *FAST).status == 0
    report = snapshot(folder / "o")
    (folder / ".o.resume").mkdir()
    (folder / "o").rename(folder / ".o.resume" / "old")  # killed before the new one took its place
    (folder / ".o.resume" / "new").mkdir()
    assert "--force" in one_sentence(cli("report", "b.pt", "--out", "o", *FAST), 2)
    assert snapshot(folder / "o") == report and not list(folder.glob(".o*"))
