"""The levels of class structure add up to the Gauss-Newton matrix, and are what Papyan's definitions say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle
from problems import CASES, _classes, _filled
from torch import nn
from torch.func import jacrev

from pyhessian_spectra import EmpiricalRisk, class_structure, ggn_gram
from pyhessian_spectra.analysis.deltas import LEVELS, extended_gradients, levels_of
from pyhessian_spectra.errors import InputError

TOLERANCE = 1e-10
both = pytest.mark.parametrize("weighting", ["examples", "probabilities"])


def network(inputs=4, classes=3):
    return _filled(nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, classes)))


def unbalanced():
    """Nine, two and one examples of three of four classes."""
    x, _ = _classes(12, (4,), 4)
    y = torch.tensor([2] * 9 + [0] * 2 + [3])
    return EmpiricalRisk(network(classes=4), nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])


def ignored():
    x, y = _classes(10, (4,), 3)
    y[3] = -100
    return EmpiricalRisk(network(), nn.CrossEntropyLoss(), (x, y))


def smoothed():
    return EmpiricalRisk(network(), nn.CrossEntropyLoss(label_smoothing=0.2), _classes(10, (4,), 3))


def two_classes():
    return EmpiricalRisk(network(classes=2), nn.CrossEntropyLoss(), _classes(10, (4,), 2))


def prototypes(num_classes=4, repeats=1, noise=0.0, length=3.0):
    """A linear softmax model at zero, on orthogonal prototypes of equal length, each repeated."""
    model = nn.Linear(num_classes + 1, num_classes, bias=False).double()
    nn.init.zeros_(model.weight)
    y = torch.arange(num_classes).repeat(repeats)
    x = length * torch.eye(num_classes + 1, dtype=torch.float64)[y]
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))


OWN = {case.__name__: case for case in (unbalanced, ignored, smoothed, two_classes)}
MORE = ("mlp", "uneven_last_batch", "tied_weights", "frozen_layer", "batchnorm_eval", "class_weights", "restricted")


def defined(risk, weighting):
    """The levels (n, n) as the definitions have them, by loops over examples and classes."""
    oracle, extended = Oracle(risk), {}
    ((x, y),) = [(torch.cat(xs), torch.cat(ys)) for xs, ys in [zip(*oracle._batches(), strict=True)]]
    scale = getattr(risk.loss_fn, "weight", None)
    w = torch.where(y < 0, 0.0, torch.ones(len(y)).double() if scale is None else scale[y.clamp(min=0)])
    w = w / w.sum()
    jacobians = jacrev(lambda theta: oracle.outputs(theta, x))(oracle.theta)
    p = oracle.outputs(oracle.theta, x).softmax(dim=1)
    classes = range(p.shape[1])
    a = w[:, None] * (p if weighting == "probabilities" else torch.ones_like(p))
    scales = torch.ones_like(p) if weighting == "probabilities" else p.sqrt()
    for i in range(len(y)):
        for other in classes:
            extended[i, other] = scales[i, other] * (jacobians[i, other] - p[i] @ jacobians[i])
    levels = {name: torch.zeros(len(oracle.theta), len(oracle.theta)).double() for name in LEVELS}
    for c in set(y[w > 0].tolist()):
        mine, others = [i for i in range(len(y)) if y[i] == c], [other for other in classes if other != c]
        share = {other: sum(a[i, other] for i in mine) for other in others}
        cross = {other: sum(a[i, other] * extended[i, other] for i in mine) / share[other] for other in others}
        mean = sum(share[other] * cross[other] for other in others) / sum(share.values())
        levels["between"] += sum(share.values()) * torch.outer(mean, mean)
        for other in others:
            levels["cross"] += share[other] * torch.outer(cross[other] - mean, cross[other] - mean)
            for i in mine:
                off = extended[i, other] - cross[other]
                levels["within"] += a[i, other] * torch.outer(off, off)
        for i in mine:
            levels["own"] += a[i, c] * torch.outer(extended[i, c], extended[i, c])
    return levels


def found(risk, weighting):
    """The levels (n, n) from the Gram matrix."""
    gram = ggn_gram(risk)
    columns = levels_of(extended_gradients(gram.answers(risk), gram), weighting)
    basis = gram.combine(torch.from_numpy(np.linalg.eigh(gram.matrix)[1][:, -gram.rank() :]))
    basis = basis / torch.linalg.vector_norm(basis, dim=0)
    parts = {name: torch.from_numpy(part[:, -gram.rank() :]) for name, part in columns.items()}
    return {name: basis @ part.T @ part @ basis.T for name, part in parts.items()}


@both
@pytest.mark.parametrize("case", [*OWN, *MORE])
def test_levels_are_those_of_the_definitions_and_add_up_to_the_matrix(case, weighting):
    risk = (OWN.get(case) or CASES[case])()
    dense, expected, levels = Oracle(risk).ggn(), defined(risk, weighting), found(risk, weighting)
    scale = float(dense.abs().max())
    assert float((sum(levels.values()) - dense).abs().max()) <= TOLERANCE * scale
    structure = class_structure(risk, weighting=weighting)
    for name in LEVELS:
        assert float((levels[name] - expected[name]).abs().max()) <= TOLERANCE * scale
        truth = torch.linalg.eigvalsh(expected[name]).numpy()
        values = structure.levels[name]
        values = values[-len(truth) :]
        np.testing.assert_allclose(values, truth[-len(values) :], rtol=0, atol=TOLERANCE * scale)
        assert truth[: -len(values)].max(initial=0.0) <= TOLERANCE * scale  # none is left out
        assert structure.traces[name] == pytest.approx(float(expected[name].trace()), abs=TOLERANCE * scale)
    rest = torch.linalg.eigvalsh(dense - expected["between"]).numpy()
    count = min(len(rest), len(structure.remaining))
    np.testing.assert_allclose(structure.remaining[-count:], rest[-count:], rtol=0, atol=TOLERANCE * scale)
    assert sum(structure.fractions.values()) == pytest.approx(1.0, abs=1e-15)


@both
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_a_softmax_model_at_zero_on_orthogonal_prototypes_has_the_levels_derived_by_hand(num_classes, weighting):
    # d_cc' = C^-1/2 (e_c' - 1/C) (x) x_c; sum_c' (e_c' - 1/C) = 0, so that d_c = -C^-1/2 (e_c - 1/C) / (C - 1) (x) x_c
    c, r = num_classes, 3.0
    structure = class_structure(prototypes(c, repeats=2, length=r), weighting=weighting)
    np.testing.assert_allclose(structure.eigenvalues[-c * (c - 1) :], r**2 / c**2)
    np.testing.assert_allclose(structure.predicted, np.full(c, r**2 / c**3))
    np.testing.assert_allclose(structure.levels["own"][-c:], (c - 1) * r**2 / c**3)
    if c > 2:
        np.testing.assert_allclose(structure.levels["cross"], np.full(c * (c - 2), r**2 / c**2))
    expected = {"own": 1 / c, "between": 1 / (c * (c - 1)), "cross": (c - 2) / (c - 1), "within": 0.0}
    assert structure.fractions == pytest.approx(expected, abs=1e-12)
    # at equal eigenvalues no eigenvector is determined, and the errors say so
    assert (structure.overlap_errors == 1).all() or c == 2


def test_examples_of_a_class_that_are_alike_leave_nothing_within_and_noise_does():
    for noise, some in ((0.0, False), (0.1, True)):
        structure = class_structure(prototypes(repeats=3, noise=noise))
        assert (structure.traces["within"] > 1e-3) == some
        assert (structure.levels["within"][-1] > 1e-3) == some


def test_parts_of_the_levels_in_the_largest_eigenvalues_add_up_to_1():
    structure = class_structure(unbalanced())
    np.testing.assert_allclose(sum(structure.parts.values()), 1.0, atol=1e-10)
    risk = unbalanced()
    dense, means = Oracle(risk).ggn(), defined(risk, "examples")["between"]
    values, vectors = torch.linalg.eigh(dense)
    parts = torch.einsum("ni,nm,mi->i", vectors, means, vectors)[-3:] / values[-3:]
    assert (np.abs(structure.parts["between"] - parts.numpy()) <= structure.part_errors + 1e-10).all()
    basis = torch.linalg.eigh(means)[1][:, -3:]
    overlaps = (basis.T @ vectors[:, -3:]).square().sum(dim=0).numpy()
    beside = torch.eye(len(dense)).double() - basis @ basis.T
    projected = torch.linalg.eigvalsh(beside @ dense @ beside).numpy()[-len(structure.projected) :]
    np.testing.assert_allclose(structure.projected[-20:], projected[-20:], atol=1e-10 * projected[-1])
    assert (np.abs(structure.overlaps - overlaps) <= structure.overlap_errors).all()
    assert structure.overlap_errors.max() < 1e-4 and structure.alignment == pytest.approx(overlaps.mean())


def test_what_is_left_without_class_means_bounds_the_next_eigenvalue():
    # Weyl: G1 has rank K, so that the (K + 1)-th eigenvalue of G is at most the largest of G - G1
    for case in ("mlp", "tied_weights", "class_weights"):
        structure = class_structure(CASES[case]())
        k = len(structure.classes)
        for left in (structure.remaining, structure.projected):
            assert structure.eigenvalues[-k - 1] <= left[-1] <= structure.eigenvalues[-1]
        assert structure.num_above_rest <= k


def test_class_means_of_a_model_that_tells_classes_apart_span_the_outliers_and_permuted_classes_do_not():
    # with p the same for all classes but one's own, e_c - 1/C is an eigenvector of diag(p) - p p^T, of p_c (1 - p_c)
    # C / (C - 1); others have p_c', which is less
    risk = prototypes(repeats=10)
    with torch.no_grad():
        risk.model.weight.copy_(torch.eye(4, 5))
    gram = ggn_gram(risk)
    structure = class_structure(risk, gram, generator=torch.Generator().manual_seed(5))
    p = np.exp(3) / (np.exp(3) + 3)
    np.testing.assert_allclose(structure.measured, 9 * p * (1 - p) / 3)
    assert structure.eigenvalues[-5] == pytest.approx(9 * (1 - p) / 3 / 4)
    assert structure.alignment == pytest.approx(1.0) and structure.alignment_error < 1e-5
    (x, y) = risk.data[0]
    mixed = y[torch.randperm(40, generator=torch.Generator().manual_seed(5))]
    first = class_structure(risk.replace(data=[(x, mixed)]), gram)
    assert structure.chance[0] == pytest.approx(first.alignment, abs=1e-9)
    assert structure.chance_errors[0] == pytest.approx(first.alignment_error)
    assert structure.chance.max() < 0.99


def test_the_order_of_examples_and_batches_does_not_matter():
    x, y = _classes(24, (4,), 3)
    mixed = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    first = class_structure(EmpiricalRisk(network(), nn.CrossEntropyLoss(), (x, y)))
    batches = [(x[part], y[part]) for part in mixed.split(7)]
    second = class_structure(EmpiricalRisk(network(), nn.CrossEntropyLoss(), batches))
    for name in LEVELS:
        np.testing.assert_allclose(first.levels[name], second.levels[name], atol=1e-10)
    np.testing.assert_allclose(first.overlaps, second.overlaps, atol=1e-8)
    assert first.classes == second.classes == ("0", "1", "2") and (first.counts == second.counts).all()


def test_a_sum_of_losses_has_the_structure_of_their_mean_times_their_number():
    x, y = _classes(10, (4,), 3)
    mean = class_structure(EmpiricalRisk(network(), nn.CrossEntropyLoss(), (x, y)))
    total = class_structure(EmpiricalRisk(network(), nn.CrossEntropyLoss(reduction="sum"), (x, y)))
    assert total.fractions == pytest.approx(mean.fractions)
    np.testing.assert_allclose(total.predicted, 10 * mean.predicted)


def test_ignored_examples_and_absent_classes_are_not_counted():
    assert class_structure(ignored()).num_examples == 9
    structure = class_structure(unbalanced(), names=["ant", "bee", "cat", "dog"])
    assert structure.classes == ("ant", "cat", "dog") and structure.counts.tolist() == [2, 9, 1]
    assert len(structure.predicted) == len(structure.overlaps) == len(structure.measured) == 3


@both
@pytest.mark.parametrize("scale", [1.0, 50.0, 300.0])
def test_float32_is_within_the_errors_stated_however_sure_the_model(weighting, scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 5))
    with torch.no_grad():
        model[2].weight *= scale
    x, y = 3 * torch.randn(40, 8), torch.randint(0, 5, (40,))
    rounded = class_structure(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)), weighting=weighting)
    precise = EmpiricalRisk(model.double(), nn.CrossEntropyLoss(), (x.double(), y))
    exact = class_structure(precise, weighting=weighting)
    for name in LEVELS:
        values = rounded.levels[name]  # those of directions that float32 does not see are left out
        off = (exact.levels[name][-len(values) :] - values) * [[-1.0], [1.0]]
        assert (off <= rounded.errors(values)).all()
        assert abs(exact.fractions[name] - rounded.fractions[name]) <= rounded.fraction_errors[name]
        assert (np.abs(exact.parts[name] - rounded.parts[name]) <= rounded.part_errors).all()
    assert (np.abs(exact.overlaps - rounded.overlaps) <= rounded.overlap_errors).all()
    assert abs(exact.alignment - rounded.alignment) <= rounded.alignment_error
    off = (exact.projected[-len(rounded.projected) :] - rounded.projected) * [[-1.0], [1.0]]
    assert (off <= rounded.projected_errors()).all()
    assert rounded.span == exact.span or rounded.alignment_error == 1
    top = rounded.levels["between"][-1:]
    assert 0 < rounded.errors(top).max() < 0.2 * top[0]


def focal(outputs, targets):
    picked = F.log_softmax(outputs, dim=1).gather(1, targets[:, None])
    return ((1 - picked.exp()).square().detach() * -picked).mean()


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (nn.MSELoss(), torch.zeros(6, 3), "one integer class as the target"),
        (nn.BCEWithLogitsLoss(), torch.zeros(6, 3), "one integer class as the target"),
        (nn.CrossEntropyLoss(), torch.full((6, 3), 1 / 3), "one integer class as the target"),
        (lambda z, y: (z - F.one_hot(y, 3)).square().mean(), None, "not that of softmax cross-entropy"),
        (focal, None, "not that of softmax cross-entropy"),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1, 3]), label_smoothing=0.3), None, "label smoothing at once"),
        (lambda z, y: F.cross_entropy(2 * z, y), None, "not that of softmax cross-entropy"),
        (lambda z, y: F.nll_loss(z, y) + 0.0 * z.square().mean(), None, "matrix is zero at this point"),
    ],
)
def test_losses_without_class_structure_are_refused(loss, targets, message):
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    risk = EmpiricalRisk(nn.Linear(4, 3), loss, (x, y if targets is None else targets))
    with pytest.raises(InputError, match=message):
        class_structure(risk)


def test_tokens_other_matrices_and_too_few_names_are_refused():
    with pytest.raises(InputError, match="several targets"):
        class_structure(CASES["attention"]())
    with pytest.raises(InputError, match="not of this risk's"):
        class_structure(CASES["mlp"](), ggn_gram(unbalanced()))
    with pytest.raises(InputError, match="names has 2 names"):
        class_structure(CASES["mlp"](), names=["a", "b"])
    with pytest.raises(InputError, match="weighting must be"):
        class_structure(CASES["mlp"](), weighting="none")


def test_a_functional_loss_is_recognised_by_its_derivative():
    risk = EmpiricalRisk(network(), partial(F.cross_entropy, label_smoothing=0.1), _classes(10, (4,), 3))
    assert class_structure(risk).predicted == pytest.approx(class_structure(smoothed()).predicted)
