"""What an analysis takes from the Gram matrix of its Gauss-Newton part, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import Oracle
from torch import nn

from pyhessian_spectra import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Partition,
    ResidualOperator,
    SpectralAnalysis,
    analyze,
)
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.report.write import write_report

FEW = {"num_eigenvalues": 3, "exact_limit": 0, "num_steps": 10, "trace_probes": 4}


def classifier(activation, dtype=torch.float64, seed=0):
    """Images of 8 x 8 pixels in four classes, through one convolution and two layers."""
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(1, 4, 3, stride=2),
        activation(),
        nn.Flatten(),
        nn.Linear(36, 12),
        activation(),
        nn.Linear(12, 4),
    )
    model = nn.Sequential(*layers).to(dtype)
    x, y = torch.randn(30, 1, 8, 8, dtype=dtype), torch.randint(0, 4, (30,))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))


def analysed(risk, **settings):
    generator = torch.Generator().manual_seed(0)
    return analyze(risk, generator=generator, gauss_newton="always", **{**FEW, **settings})


def test_of_a_piecewise_linear_network_all_layers_and_the_trace_are_exact_and_take_no_product():
    risk = classifier(nn.ReLU)
    analysis, dense = analysed(risk), Oracle(risk).hessian()
    part = analysis.gauss_newton
    assert part.own == tuple(analysis.layers) == ("0", "3", "5")
    for group in Partition.by_layer(risk.layout):
        truth, block = (
            torch.linalg.eigvalsh(dense[group.indices][:, group.indices]).numpy(),
            analysis.layers[group.label],
        )
        np.testing.assert_allclose(block.spectrum.nodes[0], truth, atol=1e-10 * truth[-1])
        for pairs, edge in ((block.largest, truth[-3:]), (block.smallest, truth[:3])):
            assert ((pairs.lower <= edge) & (edge <= pairs.upper)).all()
        assert block.num_products == 0 and block.trace.value == pytest.approx(truth.sum(), rel=1e-10)
    assert analysis.full.trace.stderr == 0
    assert abs(analysis.full.trace.value - float(dense.trace())) <= analysis.full.trace.rounding < 1e-9


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_of_a_smooth_network_layers_take_products_and_the_distance_is_bounded(activation):
    risk = classifier(activation)
    analysis, dense, ggn = analysed(risk), Oracle(risk).hessian(), Oracle(risk).ggn()
    part = analysis.gauss_newton
    assert part.own == ("5",)  # the last layer is linear
    for group in Partition.by_layer(risk.layout):
        block = (dense - ggn)[group.indices][:, group.indices]
        norm = float(torch.linalg.matrix_norm(block))
        assert norm / 5 < part.apart[group.label] < 5 * norm or (norm < 1e-12 and part.apart[group.label] == 0)
        top = float(torch.linalg.eigvalsh(dense[group.indices][:, group.indices])[-1])
        largest = analysis.layers[group.label].largest
        assert largest.lower[-1] <= top <= largest.upper[-1]
    assert analysis.full.trace.stderr > 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_weyls_band_holds_every_eigenvalue_of_the_hessian_and_counts_them(activation):
    risk = classifier(activation)
    part = analysed(risk, layers=False).gauss_newton
    values = torch.linalg.eigvalsh(Oracle(risk).hessian()).numpy()
    others = torch.linalg.eigvalsh(ResidualOperator(risk).to_dense()).numpy()
    assert part.residual[0] <= others[0] and others[-1] <= part.residual[1]
    low, high = part.shifts
    nodes = part.block.spectrum.nodes[0]
    assert ((nodes + low <= values) & (values <= nodes + high)).all()
    for threshold in (0.0, 0.1 * values[-1], 0.5 * values[-1], 2 * values[-1]):
        least, most = part.counts_above(threshold)
        assert least <= (values > threshold).sum() <= most


def test_a_linear_model_has_no_residual_so_that_the_hessian_is_known_exactly():
    torch.manual_seed(0)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(0, 3, (20,))
    risk = EmpiricalRisk(nn.Linear(6, 3).double(), nn.CrossEntropyLoss(), (x, y))
    part = analysed(risk).gauss_newton
    assert part.residual == (0.0, 0.0)
    values = torch.linalg.eigvalsh(Oracle(risk).hessian()).numpy()
    assert part.counts_above(0.01) == ((values > 0.01).sum(),) * 2


def test_the_gauss_newton_matrix_itself_takes_no_krylov_process():
    risk = classifier(nn.Tanh)
    analysis, dense = analysed(risk, matrix=GGNOperator), Oracle(risk).ggn()
    values = torch.linalg.eigvalsh(dense).numpy()
    np.testing.assert_allclose(analysis.full.spectrum.nodes[0], values, atol=1e-10 * values[-1])
    assert analysis.full.largest.eigenvectors.shape == (risk.n, 3)
    assert set(analysis.layers) == {"0", "3", "5"} and analysis.timing["num_products"] == 0


def test_blocks_of_any_partition_are_taken_where_they_are_their_own():
    risk = classifier(nn.ReLU)
    rows = Partition.by_rows(risk.layout, "3.weight", 4)
    analysis, dense = analysed(risk, layers=rows), Oracle(risk).hessian()
    assert analysis.gauss_newton.own == tuple(group.label for group in rows)
    for group in rows:
        truth = torch.linalg.eigvalsh(dense[group.indices][:, group.indices]).numpy()
        np.testing.assert_allclose(analysis.layers[group.label].spectrum.nodes[0], truth, atol=1e-10)


def test_a_block_that_is_nearly_its_own_is_not_taken_for_it():
    """Squares of ReLUs times 1e-3: the block of H - G is a thousandth of that of G, far above rounding."""

    class Bent(nn.Module):
        def forward(self, x):
            return torch.relu(x) + 1e-3 * torch.relu(x) ** 2

    risk = classifier(Bent)
    analysis = analysed(risk)
    assert analysis.gauss_newton.own == ("5",)
    assert 0 < analysis.gauss_newton.apart["3"] < 0.1 * analysis.gauss_newton.block.frobenius.value


def outer_product_blocks():
    """Models of which a block of H - G is c x x^T with entries of equal size, which half of all sign vectors annul."""
    y = torch.tensor([[0.0, 1.0]] * 20, dtype=torch.float64)
    softmax = nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)).double()
    yield softmax, (torch.zeros(20, 3, dtype=torch.float64), y), "parameter"
    yield (
        nn.Sequential(nn.Linear(4, 1, bias=False), nn.Sigmoid()).double(),
        (torch.ones(1, 4, dtype=torch.float64), y[:1, :1]),
        True,
    )


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_no_block_but_zero_is_taken_for_zero(number, seed):
    model, data, layers = list(outer_product_blocks())[number]
    risk = EmpiricalRisk(model, nn.MSELoss(), data)
    generator = torch.Generator().manual_seed(seed)
    part = analyze(risk, layers=layers, gauss_newton="always", generator=generator, **FEW).gauss_newton
    dense = Oracle(risk).hessian() - Oracle(risk).ggn()
    groups = Partition.by_parameter(risk.layout) if layers == "parameter" else Partition.by_layer(risk.layout)
    for group in groups:
        if group.label in part.own:
            assert float(dense[group.indices][:, group.indices].abs().max()) < 1e-12


def test_an_analysis_goes_on_without_a_part_that_cannot_be_had():
    """The loss is convex in the outputs of the first examples, and not in those of later ones."""
    risk = classifier(nn.ReLU)
    sign = torch.ones(30, dtype=torch.float64)
    sign[20:] = -1.0
    x = next(iter(risk.sample.read()))[1].inputs
    data = [(x[:20], sign[:20]), (x[20:], sign[20:])]
    mixed = EmpiricalRisk(risk.model, lambda z, s: (s[:, None] * z.square()).mean(), data)
    analysis = analyze(mixed, layers=False, num_eigenvalues=3, exact_limit=0)
    assert analysis.gauss_newton is None
    with pytest.raises(InputError, match="not convex"):
        analyze(mixed, gauss_newton="always", **FEW)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_an_interrupted_analysis_resumes_to_the_same_part(activation, tmp_path):
    risk, told = classifier(activation), []

    def progress(what, done, expected):
        told.append(what)
        if len(told) in (4, 40):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            analysed(risk, journal=tmp_path, progress=progress)
    resumed, whole = analysed(risk, journal=tmp_path), analysed(risk)
    assert [note.kind for note in resumed.notes].count("resumed") == 1
    assert resumed.gauss_newton.residual == whole.gauss_newton.residual
    assert resumed.gauss_newton.apart == whole.gauss_newton.apart
    np.testing.assert_array_equal(resumed.full.spectrum.nodes, whole.full.spectrum.nodes)
    np.testing.assert_array_equal(resumed.layers["3"].spectrum.nodes, whole.layers["3"].spectrum.nodes)


def test_never_takes_none_and_what_has_none_is_refused_only_if_it_is_wanted_always():
    risk = classifier(nn.ReLU)
    assert analyze(risk, gauss_newton="never", layers=False, **FEW).gauss_newton is None
    with pytest.raises(InputError, match="is for the Hessian and for G"):
        analyze(risk, gauss_newton="always", matrix=lambda r: HessianOperator(r) + GGNOperator(r), **FEW)
    concave = EmpiricalRisk(risk.model, lambda z, y: -z.square().mean(), risk.sample.data)
    assert analyze(concave, layers=False, **FEW).gauss_newton is None
    with pytest.raises(InputError, match="not convex"):
        analyze(concave, gauss_newton="always", **FEW)


def test_errors_of_the_data_are_those_over_fresh_examples():
    """Linear regression: G = X^T X / N, whose trace and largest eigenvalue are drawn anew 200 times."""
    torch.manual_seed(0)
    model, scale = nn.Linear(5, 1, bias=False).double(), torch.tensor([3.0, 1.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    tops, traces, said = [], [], []
    for _ in range(200):
        x = torch.randn(100, 5, dtype=torch.float64) * scale
        values = torch.linalg.eigvalsh(2 * x.T @ x / 100)
        tops.append(float(values[-1]))
        traces.append(float(values.sum()))
        if len(said) < 20:
            risk = EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(100, 1, dtype=torch.float64)))
            block = analysed(risk, matrix=GGNOperator, num_eigenvalues=1).full
            said.append((block.largest.data_stderr[-1], block.trace.data_stderr))
    for found, drawn in zip(np.mean(said, axis=0), (tops, traces), strict=True):
        assert found == pytest.approx(np.std(drawn, ddof=1), rel=0.2)


def test_an_analysis_with_its_part_is_saved_read_and_reported(tmp_path):
    analysis = analysed(classifier(nn.ReLU, torch.float32))
    analysis.save(tmp_path / "found")
    again = SpectralAnalysis.load(tmp_path / "found")
    assert again.to_json() == analysis.to_json()
    analysis.save(tmp_path / "lr0.1")
    analysis.save(tmp_path / "lr0.2.json")
    assert {path.name for path in tmp_path.glob("lr*")} == {"lr0.1.json", "lr0.1.npz", "lr0.2.json", "lr0.2.npz"}
    assert SpectralAnalysis.load(tmp_path / "lr0.1").to_json() == analysis.to_json()
    part = again.gauss_newton
    assert part.thumbnails.shape == (12, 1, 8, 8) and part.carriers.labels is not None and part.classes is not None
    page = write_report([again], tmp_path / "report").read_text()
    for words in (
        "The Gauss-Newton part",
        "What more examples would make of it",
        "Which examples carry it",
        "that of its Gauss-Newton part to rounding",
    ):
        assert words in page
    assert {path.name for path in (tmp_path / "report/figures").iterdir()} >= {
        "weyl.svg", "data-curve.svg", "carriers.svg", "classes.svg"
    }  # fmt: skip
