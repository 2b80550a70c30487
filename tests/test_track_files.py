"""What a tracker has recorded survives the run: on disk line by line, and in the state that a resumed run takes up."""

import csv
import io
import json

import pytest
import torch
from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.tracking import Eigenvalues, MidpointLoss, SpectrumTracker, Traces, Track


def _training(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(2))
    batches = list(zip(x.split(6), (torch.arange(30) % 3).split(6), strict=True))
    return model, batches, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def _tracker(model, batches, path=None, **how):
    how = {"every": 2, "budget": None, "certify_every": 4, **how}
    return SpectrumTracker(model, nn.CrossEntropyLoss(), batches, path=path, **how)


def _steps(model, batches, opt, found, count):
    for _ in range(count):
        x, y = batches[found.num_steps % len(batches)]
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        found.step(opt, loss=loss)


def _numbers(track):
    return [(record.step, record.values, record.threshold, record.loss, record.products) for record in track.records]


def test_a_file_holds_what_was_recorded(tmp_path):
    model, batches, opt = _training()
    found = _tracker(model, batches, tmp_path / "runs" / "track.jsonl")
    _steps(model, batches, opt, found, 9)
    again = Track.read(tmp_path / "runs" / "track.jsonl")
    assert again.records == found.track.records
    assert again.about == found.track.about
    assert again.records[-1].threshold == pytest.approx(3.8 / 0.2)


def test_records_of_a_killed_run_are_kept_and_a_line_cut_off_is_dropped(tmp_path):
    model, batches, opt = _training()
    path = tmp_path / "track.jsonl"
    found = _tracker(model, batches, path)
    _steps(model, batches, opt, found, 8)
    with path.open("a") as handle:
        handle.write('{"step": 10, "val')
    assert _numbers(Track.read(path)) == _numbers(found.track)


def test_a_run_that_goes_on_gives_the_numbers_of_one_that_never_stopped(tmp_path):
    model, batches, opt = _training()
    whole = _tracker(model, batches)
    _steps(model, batches, opt, whole, 20)

    model, batches, opt = _training()
    path = tmp_path / "track.jsonl"
    found = _tracker(model, batches, path)
    _steps(model, batches, opt, found, 10)
    torch.save([model.state_dict(), opt.state_dict(), found.state_dict()], tmp_path / "checkpoint.pt")
    _steps(model, batches, opt, found, 5)  # which are lost
    with path.open("a") as handle:
        handle.write('{"step"')

    model, batches, opt = _training(1)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    found = _tracker(model, batches, path)
    with pytest.raises(InputError, match="has records up to step 14"):
        found.measure(opt)
    found.load_state_dict(saved[2])
    _steps(model, batches, opt, found, 10)
    assert _numbers(found.track) == _numbers(whole.track)
    assert _numbers(Track.read(path)) == _numbers(whole.track)
    assert sum("resumed" in line for line in path.read_text().splitlines()) == 1


def test_a_file_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    model, batches, opt = _training()
    path = tmp_path / "track.jsonl"
    _steps(model, batches, opt, _tracker(model, batches, path), 4)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another run: its quantities"):
        _tracker(model, batches, path, quantities=[Traces()])
    with pytest.raises(InputError, match="another run: its examples"):
        _tracker(model, batches[1:], path)
    with pytest.raises(InputError, match="another run: its fingerprint"):
        _tracker(model, [(x + 1, y) for x, y in batches], path)
    assert path.read_bytes() == before


def test_a_run_killed_in_its_first_line_begins_the_file_again(tmp_path):
    model, batches, opt = _training()
    (tmp_path / "track.jsonl").write_text('{"format": "pyhess')
    _steps(model, batches, opt, _tracker(model, batches, tmp_path / "track.jsonl"), 4)
    assert [record.step for record in Track.read(tmp_path / "track.jsonl").records] == [2, 4]


def test_of_two_trackers_on_one_path_the_first_keeps_its_records_to_itself(tmp_path):
    model, batches, opt = _training()
    first = _tracker(model, batches, tmp_path / "track.jsonl")
    second = _tracker(model, batches, tmp_path / "track.jsonl")
    _steps(model, batches, opt, second, 2)
    with pytest.warns(RuntimeWarning, match="another tracker writes there"):
        _steps(model, batches, opt, first, 2)
    assert len(Track.read(tmp_path / "track.jsonl").records) == 1


def test_a_run_taken_up_just_before_a_measurement_has_the_parameters_before_its_step():
    model, batches, opt = _training()
    quantities = [MidpointLoss()]
    found = _tracker(model, batches, quantities=quantities)
    _steps(model, batches, opt, found, 3)
    resumed = _tracker(model, batches, quantities=[MidpointLoss()])
    resumed.load_state_dict(found.state_dict())
    _steps(model, batches, opt, resumed, 1)
    assert len(resumed.track.records[-1].values) == 3


@pytest.mark.parametrize("text", ["", "[1]\n", '{"format": "other"}\n', "not json\n", '{"format"'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match="not the record"):
        Track.read(tmp_path / "x")
    with pytest.raises(InputError, match="cannot be read"):
        Track.read(tmp_path / "missing")


def test_a_state_of_another_tracker_is_refused():
    model, batches, _ = _training()
    state = _tracker(model, batches).state_dict()
    with pytest.raises(InputError, match="not the state"):
        _tracker(model, batches, quantities=[Eigenvalues()]).load_state_dict(state)


def test_a_disk_that_fails_does_not_end_the_tracking(tmp_path):
    model, batches, opt = _training()
    found = _tracker(model, batches, tmp_path / "track.jsonl")
    _steps(model, batches, opt, found, 2)
    (tmp_path / "track.jsonl").unlink()
    (tmp_path / "track.jsonl").mkdir()
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        _steps(model, batches, opt, found, 2)
    _steps(model, batches, opt, found, 2)
    assert len(found.track.records) == 3


def test_the_table_has_every_number_with_its_errors(tmp_path):
    model, batches, opt = _training()
    found = _tracker(model, batches)
    _steps(model, batches, opt, found, 4)
    found.track.to_csv(tmp_path / "track.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "track.csv").read_text())))
    record = found.track.records[-1]
    tops = [row for row in rows if row["quantity"] == "lambda_1" and row["step"] == "4.0"]
    each = record.get("lambda_1")
    assert [float(row["error"]) for row in tops] == [each.error, each.data_error]
    assert {row["block"] for row in rows if row["quantity"] == "trace"} == {"whole", "0", "2"}
    assert [float(row["value"]) for row in rows if row["quantity"] == "edge of stability"] == pytest.approx([19, 19])


def test_a_series_leaves_out_what_did_not_converge():
    model, batches, opt = _training()
    found = _tracker(model, batches, every=1, quantities=[Eigenvalues(tol=1e-12, max_products=1)])
    _steps(model, batches, opt, found, 4)
    steps, values, _, _ = found.track.series("lambda_1")
    assert steps.tolist() == [1, 2, 3, 4]
    assert torch.tensor(values).isnan().tolist() == [False, True, True, True]
    with pytest.raises(InputError, match="no 'trace' was tracked; there are lambda_1"):
        found.track.series("trace")
    line = json.dumps(repr(found.track))
    assert "4 records" in line and len(line) < 100
