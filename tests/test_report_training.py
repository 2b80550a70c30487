"""The page of a tracked training says what was recorded, alone and beside checkpoints, and loads nothing."""

import csv
import io

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pyhessian_spectra import EmpiricalRisk, analyze
from pyhessian_spectra.cli.main import commands
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import plot_batch_eigenvalues, plot_track
from pyhessian_spectra.report import write_report, write_training
from pyhessian_spectra.tracking import BatchEigenvalues, Eigenvalues, SpectrumTracker, Traces, Track


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The file of a short training, its model and data."""
    path = tmp_path_factory.mktemp("track") / "first.jsonl"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(40, 5)
    y = torch.arange(40) % 3
    optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.5), nn.CrossEntropyLoss()
    how = {"every": 3, "budget": None, "quantities": [Eigenvalues(2, smallest=1), Traces(2, first=4)], "path": path}
    tracker = SpectrumTracker(model, loss_fn, list(zip(x.split(10), y.split(10), strict=True)), **how)
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        tracker.step(optimizer, loss=loss)
    return path, EmpiricalRisk(model, loss_fn, (x, y))


def test_the_page_concludes_from_the_record_and_its_table_has_every_number(tracked, tmp_path):
    track = Track.read(tracked[0])
    page = write_training({"first": track}, tmp_path / "out").read_text()
    values = [record.get("lambda_1").value for record in track.records]
    highest = track.records[values.index(max(values))].step
    at = sum(record.get("lambda_1").value + record.get("lambda_1").error >= 4.0 for record in track.records)
    text = page.replace("\xa0", " ")
    assert f"at step {highest}" in text
    assert f"edge of stability, within its error, or above in {at} of 10 records" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert len(rows) == len(list(track.rows())) and {row["run"] for row in rows} == {"first"}
    assert "λ₂ along training" in page and "Λ" not in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")


def test_a_long_record_is_shown_in_part_and_an_early_end_with_its_reason(tracked, tmp_path):
    track = Track.read(tracked[0])
    last = track.records[-1]
    many = [last.__class__(i, last.values, last.threshold) for i in range(200)]
    ended = last.__class__(200, (), ended="the training loss is <nan>")
    page = write_training({"a": Track(track.about, [*many, ended])}, tmp_path / "out").read_text()
    assert page.count('data-label="Step"') == 25
    assert "Tracking ended early" in page and "the training loss is &lt;nan&gt;" in page


def test_tracks_stand_in_the_report_of_checkpoints_too(tracked, tmp_path):
    path, risk = tracked
    page = write_report([analyze(risk, layers=False)], tmp_path / "out", tracks={"first": Track.read(path)}).read_text()
    assert 'id="training"' in page and 'id="checkpoint-1"' in page
    assert (tmp_path / "out" / "figures" / "training-1.svg").exists()
    assert ",change of trace," in (tmp_path / "out" / "table.csv").read_text()


def test_the_command_takes_tracks_alone_and_names_what_is_missing(tracked, tmp_path):
    run = CliRunner()
    out = tmp_path / "out"
    done = run.invoke(commands, ["report", "--track", str(tracked[0]), "--out", str(out), "--title", "Mine"])
    assert done.exit_code == 0 and "wrote" in done.output
    assert "<h1>Mine</h1>" in (out / "report.html").read_text()
    assert run.invoke(commands, ["report", "--out", str(out)]).exit_code == 2
    with pytest.raises(InputError, match="cannot be read"):
        run.invoke(
            commands, ["report", "--track", "nowhere", "--out", str(out)], catch_exceptions=False, standalone_mode=False
        )


def test_an_empty_track_is_refused(tracked, tmp_path):
    with pytest.raises(InputError, match="empty has no record"):
        write_training({"empty": Track({})}, tmp_path / "out")


def test_a_track_is_drawn_with_its_edge_its_certified_marks_and_its_bands(tracked):
    track = Track.read(tracked[0])
    ax = plot_track(track)
    assert ax.get_ylabel().startswith(r"$\lambda_{1}$") and ax.get_xlabel() == "Step"
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_ydata() == pytest.approx([4.0] * 10)
    assert len(ax.collections) > 1  # a band, and bars
    assert len([line for line in plot_track(track, "trace").lines if line.get_linestyle() == "--"]) == 0
    both = plot_track({"a": track, "b": track}, "trace", block="0")
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["a", "b"]
    with pytest.raises(InputError, match="no 'x' was tracked"):
        plot_track(track, "x")
    with pytest.raises(InputError, match="no track"):
        plot_track({})


def test_eigenvalues_of_batches_are_drawn_as_a_histogram_a_record(tracked):
    risk = tracked[1]
    ((x, y),) = risk.data
    batches = list(zip(x.split(10), y.split(10), strict=True))
    quantities = [Eigenvalues(), BatchEigenvalues()]
    tracker = SpectrumTracker(risk.model, risk.loss_fn, batches, every=1, budget=None, quantities=quantities)
    for _ in range(20):
        tracker.step()
    ax = plot_batch_eigenvalues(tracker.track)
    assert len(ax.get_yticks()) == 12
    assert ax.get_yticklabels()[0].get_text() == "step 1" and ax.get_yticklabels()[-1].get_text() == "step 20"
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 12
    assert plot_track(tracker).get_xlabel() == "Step"
    with pytest.raises(InputError, match="BatchEigenvalues"):
        plot_batch_eigenvalues(Track.read(tracked[0]))
