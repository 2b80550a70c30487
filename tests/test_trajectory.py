"""Checkpoints beside one another: what is followed, what has changed, and how far that may be off."""

import dataclasses

import numpy as np
import pytest
import torch
from analyses import exact_analysis, training_run
from oracle import Oracle

from pyhessian_spectra import (
    EmpiricalRisk,
    HessianOperator,
    MatrixOperator,
    Partition,
    SpectralAnalysis,
    analyze,
    analyze_operator,
)
from pyhessian_spectra.analysis.table import tidy
from pyhessian_spectra.analysis.trajectory import change, changes_between, follow_checkpoints
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra import TraceEstimate

VECTORS = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q


def of_matrix(values: torch.Tensor, vectors: torch.Tensor = VECTORS, **problem) -> SpectralAnalysis:
    """An analysis of the matrix with these eigenvalues."""
    op = MatrixOperator((vectors * values) @ vectors.T)
    return SpectralAnalysis(
        problem, analyze_operator(op, num_eigenvalues=3, generator=torch.Generator().manual_seed(1))
    )


def ladder(*top: float) -> torch.Tensor:
    return torch.cat([torch.linspace(-0.1, 0.1, 40 - len(top)), torch.tensor(top)]).double()


def test_an_eigenvalue_is_followed_by_its_vector_where_ranks_cross():
    """The one that falls from the first rank to the second is one track, and so is the one that overtakes it."""
    run = [of_matrix(ladder(1.0, 2.0, 5.0)), of_matrix(ladder(1.0, 3.0, 2.5)), of_matrix(ladder(0.05, 4.0, 2.0))]
    found = follow_checkpoints(run)
    tracks = {tuple(row) for row in found.tracks.tolist()}
    assert {(0, 1, 1), (1, 0, 0), (2, 2, -1)} <= tracks
    assert found.overlaps[0] == pytest.approx([1.0, 1.0])
    assert len(found.tracks) == 4 and (found.tracks[3] == [-1, -1, 2]).all()


def test_a_vector_that_is_new_begins_a_track_of_its_own():
    turned = torch.roll(VECTORS, 1, dims=1)
    found = follow_checkpoints([of_matrix(ladder(1.0, 2.0, 5.0)), of_matrix(ladder(1.0, 2.0, 5.0), turned)])
    # the two largest vectors were the second and the third before; what is now third is new
    assert {tuple(row) for row in found.tracks.tolist()} == {(0, -1), (1, 0), (2, 1), (-1, 2)}
    assert found.persistence[0, 0] == pytest.approx(2 / 3) and found.persistence[0, 1] < 1e-6
    assert found.chance == 3 / 40


def test_without_vectors_nothing_is_followed():
    found = follow_checkpoints(training_run())
    assert (found.tracks[:, 1:][found.tracks[:, :1].repeat(3, axis=1) >= 0] == -1).all()
    assert np.isnan(found.persistence).all()


def network(moved: float, data, hidden: int = 5) -> EmpiricalRisk:
    """A network, moved a little along a random direction that is always the same."""
    generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            start, along = torch.randn(2, *p.shape, generator=generator, dtype=torch.float64)
            p.copy_(0.4 * start + moved * along)
    return EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)


def examples(seed: int = 0, count: int = 120):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (count,), generator=generator)
    return list(zip(x.split(count // 12), y.split(count // 12), strict=True))


def analysed(moved: float, data, seed: int = 0, **fields) -> SpectralAnalysis:
    """The whole matrix only."""
    generator = torch.Generator().manual_seed(seed)
    op = HessianOperator(network(moved, data))
    block = analyze_operator(op, num_eigenvalues=3, num_steps=10, generator=generator, **fields)
    return SpectralAnalysis({}, block)


def test_a_change_of_trace_has_an_interval_of_its_own_that_covers_and_is_narrow():
    data, covered, ratios = examples(), 0, []
    truth = float(Oracle(network(0.02, data)).hessian().trace() - Oracle(network(0.0, data)).hessian().trace())
    for seed in range(20):
        one, other = (analysed(moved, data, seed, exact_limit=0, rtol=0.0).full.trace for moved in (0.0, 0.02))
        found = change(one, other)
        low, high = found.interval(0.95)
        covered += low <= truth <= high
        ratios.append(found.stderr / np.hypot(one.stderr, other.stderr))
    assert covered >= 16 and np.median(ratios) < 0.5


def test_the_error_of_the_data_of_a_change_is_the_spread_over_fresh_data():
    changes, said, apart = [], [], []
    for seed in range(30):
        data = examples(seed)
        one, other = (analysed(moved, data) for moved in (0.0, 0.02))
        moved = follow_checkpoints([one, other])
        changes.append([moved.trace[0].value, moved.largest[0].value])
        said.append([moved.trace[0].data_stderr, moved.largest[0].data_stderr])
        apart.append(np.hypot(one.full.trace.data_stderr, other.full.trace.data_stderr))
    ratio = np.sqrt(np.mean(np.square(said), axis=0)) / np.std(changes, axis=0, ddof=1)
    assert (ratio > 0.65).all() and (ratio < 1.7).all()
    assert np.mean(said, axis=0)[0] < 0.5 * np.mean(apart)


def layer_traces_of_batches(moved: float, data) -> dict[str, np.ndarray]:
    """The trace of each layer's block on each batch alone, from dense Hessians."""
    found: dict[str, list[float]] = {"0": [], "2": []}
    for batch in data:
        risk = network(moved, [batch])
        diagonal = Oracle(risk).hessian().diagonal()
        for name, group in Partition.by_layer(risk.layout).groups.items():
            found[name].append(float(diagonal[group.indices].sum()))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("way", ["built", "pass"])
def test_changes_of_the_traces_of_layers_have_paired_errors_of_the_data(way):
    data, fields = examples(), {"built": {"num_eigenvalues": 69}, "pass": {"exact_limit": 0, "num_eigenvalues": 3}}
    generator = torch.Generator()
    run = [
        analyze(network(moved, data), **fields[way], generator=generator.manual_seed(0), coupling_probes=0)
        for moved in (0.0, 0.02)
    ]
    found, apart = follow_checkpoints(run), [layer_traces_of_batches(moved, data) for moved in (0.0, 0.02)]
    same = follow_checkpoints([run[0], run[0]])
    for name, (moved,) in found.layer_traces.items():
        exact = np.std(apart[1][name] - apart[0][name], ddof=1) / len(data) ** 0.5
        assert way != "built" or moved.data_stderr == pytest.approx(exact, rel=1e-8)
        assert 0.6 < moved.data_stderr / exact < 2.5  # few probes leave some of it open
        assert moved.data_stderr < 0.3 * np.hypot(*(each.layers[name].trace.data_stderr for each in run))
        assert same.layer_traces[name][0].data_stderr == 0


def test_other_data_give_errors_as_if_independent():
    one, other = TraceEstimate(1.0, 0.0, 0, data_stderr=3.0), TraceEstimate(2.0, 0.0, 0, data_stderr=4.0)
    assert change(one, other).data_stderr == 5.0 and change(one, other).value == 1.0
    assert change(one, dataclasses.replace(other, data_stderr=None)).data_stderr is None


def diverges(curvature: float, rate: float, **how) -> bool:
    """Whether torch's SGD leaves the minimum of a quadratic."""
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=rate, **how)
    for _ in range(2000):
        optimizer.zero_grad()
        (curvature * w**2 / 2).sum().backward()
        optimizer.step()
    return bool(w.abs() > 1)


@pytest.mark.parametrize(
    "how", [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}, {"weight_decay": 5.0}], ids=str
)
def test_the_threshold_is_where_the_optimiser_becomes_unstable(how):
    limit = follow_checkpoints([exact_analysis(learning_rate=0.1, **how), exact_analysis()]).thresholds[0]
    assert diverges(1.02 * limit, 0.1, **how) and not diverges(0.98 * limit, 0.1, **how)


@pytest.mark.parametrize("unknown", [{}, {"optimizer": "Adam"}, {"optimiser": "AdamW"}, {"dampening": 0.5}], ids=str)
def test_no_threshold_is_told_where_it_is_not_known(unknown):
    rate = {"learning_rate": 0.1} if unknown else {}
    assert follow_checkpoints([exact_analysis(**rate, **unknown), exact_analysis()]).thresholds == (None, None)


def test_checkpoints_on_other_data_or_another_loss_are_noted_and_not_paired():
    risk, generator = network(0.0, examples()), torch.Generator().manual_seed(0)

    def of(data, loss=None) -> SpectralAnalysis:
        other = EmpiricalRisk(risk.model, loss or risk.loss_fn, data)
        return analyze(other, layers=False, num_eigenvalues=3, generator=generator.manual_seed(0))

    first = of(risk.data)
    assert not follow_checkpoints([first, of(risk.data)]).notes
    assert follow_checkpoints([first, of(risk.data)]).trace[0].data_stderr < 1e-6
    for other in (of(risk.data[::-1]), of(examples(1)), of(risk.data, torch.nn.CrossEntropyLoss(label_smoothing=0.3))):
        found = follow_checkpoints([first, other])
        assert [note.kind for note in found.notes] == ["comparison"]
        errors = first.full.trace.data_stderr, other.full.trace.data_stderr
        assert found.trace[0].data_stderr == pytest.approx(np.hypot(*errors))
        assert changes_between(first, other) == {"lambda_1": found.largest[0], "trace": found.trace[0]}
    again = follow_checkpoints([first, of(risk.data)])
    assert changes_between(first, of(risk.data)) == {"lambda_1": again.largest[0], "trace": again.trace[0]}


def test_other_data_are_noted_and_wrong_arguments_refused():
    assert follow_checkpoints([exact_analysis(N=5), exact_analysis()]).notes[0].kind == "comparison"
    assert not follow_checkpoints([exact_analysis(sha256="a" * 64), exact_analysis()]).notes
    with pytest.raises(InputError, match="a sequence of SpectralAnalysis"):
        follow_checkpoints(exact_analysis())
    with pytest.raises(InputError, match="1 labels were given for 2 checkpoints"):
        tidy([exact_analysis(), exact_analysis()], ["one"])
    with pytest.raises(InputError, match="at least two checkpoints, got 1"):
        follow_checkpoints([exact_analysis()])
    with pytest.raises(InputError, match="1,000 and 2,000 parameters"):
        follow_checkpoints([exact_analysis(), exact_analysis(n=1000)])
    with pytest.raises(InputError, match="between 1 and the 8 eigenvalues"):
        follow_checkpoints([exact_analysis(), exact_analysis()], k=9)
