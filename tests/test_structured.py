"""Operators made of others, conjugate gradients, and the check that users' own operators can be put to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import CASES
from reads import Reads
from torch import Tensor

from pyhessian_spectra import (
    BlockDiagonalOperator,
    CongruenceOperator,
    DiagonalOperator,
    GGNOperator,
    HessianOperator,
    IdentityOperator,
    LinearOperator,
    MatrixOperator,
    Meter,
    Partition,
    ShiftedOperator,
    VectorSpace,
    analyze_operator,
    cg,
    eigh,
)
from pyhessian_spectra.errors import InputError, NonFiniteError, SpectraError
from pyhessian_spectra.spectra.cg import relative_progress
from pyhessian_spectra.testing import check_operator, matrix_with_spectrum

A = matrix_with_spectrum(np.linspace(0.5, 4, 12))
DENSE = A.to_dense()
SIGNS = torch.linspace(-1, 2, 12, dtype=torch.float64)
TALL = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
PICKED = torch.tensor([7, 2, 3])
BLOCKS = [MatrixOperator(DENSE[:3, :3].clone()), MatrixOperator(DENSE[3:5, 3:5].clone())]
EXPECTED = {
    "identity": (IdentityOperator(VectorSpace(12, dtype=torch.float64)), torch.eye(12, dtype=torch.float64)),
    "diagonal": (DiagonalOperator(SIGNS), torch.diag(SIGNS)),
    "shifted": (ShiftedOperator(A, -0.5), DENSE - 0.5 * torch.eye(12, dtype=torch.float64)),
    "blocks": (BlockDiagonalOperator(BLOCKS), torch.block_diag(*(b.to_dense() for b in BLOCKS))),
    "picked": (CongruenceOperator(A, PICKED), DENSE[PICKED][:, PICKED]),
    "rescaled": (CongruenceOperator(A, SIGNS), SIGNS[:, None] * DENSE * SIGNS),
    "projected": (CongruenceOperator(A, TALL), TALL.T @ DENSE @ TALL),
    "difference": (2 * A - DiagonalOperator(SIGNS), 2 * DENSE - torch.diag(SIGNS)),
    "metered": (Meter(A), DENSE),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_operators_are_the_matrices_they_say(name):
    op, expected = EXPECTED[name]
    torch.testing.assert_close(op.to_dense(), expected)
    assert check_operator(op).differences is None
    np.testing.assert_allclose(op.to_scipy() @ np.eye(op.n), expected.numpy(), atol=1e-13)


def test_blocks_may_lie_anywhere_and_leave_coordinates_out():
    spread = [torch.tensor([5, 0, 2]), torch.tensor([4, 6])]
    found = BlockDiagonalOperator(BLOCKS, spread, n=8).to_dense()
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for block, index in zip(BLOCKS, spread, strict=True):
        expected[index[:, None], index] = block.to_dense()
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="must be distinct"):
        BlockDiagonalOperator(BLOCKS, [torch.tensor([0, 1, 2]), torch.tensor([2, 3])])
    with pytest.raises(InputError, match="as many indices"):
        BlockDiagonalOperator(BLOCKS, [torch.tensor([0, 1]), torch.tensor([2, 3])])


def test_what_is_no_operator_or_no_transform_is_refused():
    for wrong in (torch.ones(3, dtype=torch.float64), torch.ones(12, 2, 2, dtype=torch.float64)):
        with pytest.raises(InputError, match="transform must be"):
            CongruenceOperator(A, wrong)
    with pytest.raises(InputError, match="LinearOperator is needed"):
        ShiftedOperator(DENSE, 1.0)
    with pytest.raises(InputError, match="vector of real entries"):
        DiagonalOperator(torch.arange(3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])
def test_curvature_matrices_pass_the_check(case, operator):
    found = check_operator(operator(CASES[case]()))
    assert (found.differences is None) == (operator is GGNOperator)


class _Crooked(LinearOperator):
    def __init__(self, matrix: Tensor, *, bend: float = 0.0) -> None:
        super().__init__(len(matrix), dtype=matrix.dtype)
        self._matrix, self._bend = matrix, bend

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matrix @ v + self._bend * v.abs()


def test_an_operator_that_is_none_fails_the_check_by_name():
    upper = torch.triu(torch.ones(6, 6, dtype=torch.float64))
    with pytest.raises(AssertionError, match="asymmetry"):
        check_operator(_Crooked(upper))
    with pytest.raises(AssertionError, match=r"nonlinearity|asymmetry"):
        check_operator(_Crooked(torch.eye(6, dtype=torch.float64), bend=0.1))
    risk = CASES["mlp"]()
    with pytest.raises(AssertionError, match="differ from central differences"):
        ggn, point = GGNOperator(risk), risk.point()  # which is not the Hessian
        check_operator(ggn, gradient=lambda step: risk.gradient(point.moved(step)))


def test_a_matrix_with_a_spectrum_has_it():
    values = [-1.0, 0.0, 0.0, 3.0]
    np.testing.assert_allclose(eigh(matrix_with_spectrum(values)).eigenvalues, values, atol=1e-14)


# Conjugate gradients


def vector(seed: int = 0) -> Tensor:
    return torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cg_ends_after_as_many_steps_as_there_are_distinct_eigenvalues():
    op, b = matrix_with_spectrum([1.0] * 5 + [2.0] * 4 + [7.0] * 3), vector()
    found = cg(op, b, rtol=1e-12)
    assert found.status == "converged" and found.num_iterations == 3
    torch.testing.assert_close(op @ found.x, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("warm", [False, True])
def test_the_model_of_cg_is_the_quadratic_and_falls(warm):
    b, x0 = vector(), vector(1) if warm else None
    models, iterates = [], range(1, 9)
    for k in iterates:
        found = cg(A, b, x0=x0, max_iterations=k, rtol=0.0)
        models.append(float(found.x @ (DENSE @ found.x) / 2 - b @ found.x))
        assert found.num_iterations == k and found.status == "max_iterations"
    np.testing.assert_allclose(found.model[1:], models, rtol=1e-10, atol=1e-12)
    start = 0.0 if x0 is None else float(x0 @ (DENSE @ x0) / 2 - b @ x0)
    assert found.model[0] == pytest.approx(start) and (np.diff(found.model) < 0).all()
    residual = float((b - DENSE @ found.x).norm())
    assert found.residuals[-1] == pytest.approx(residual, rel=1e-6)


@pytest.mark.parametrize("warm", [False, True])
def test_a_shift_is_an_operator_that_is_shifted(warm):
    x0 = vector(1) if warm else None
    within, without = cg(A, vector(), x0=x0, shift=0.7), cg(ShiftedOperator(A, 0.7), vector(), x0=x0)
    torch.testing.assert_close(within.x, without.x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(within.model, without.model, rtol=1e-12, atol=1e-13)
    assert cg(A, vector(), shift=-5.0).status == "negative curvature"


def test_a_preconditioner_that_is_the_inverse_takes_one_step_and_any_other_changes_no_solution():
    b = vector()
    inverse = MatrixOperator(torch.linalg.inv(DENSE).mul_(1).add_(0).triu().add(torch.linalg.inv(DENSE).triu(1).T))
    assert cg(A, b, preconditioner=inverse, rtol=1e-9).num_iterations == 1
    scaled = cg(A, b, preconditioner=lambda r: r / DENSE.diagonal(), rtol=1e-12)
    torch.testing.assert_close(scaled.x, torch.linalg.solve(DENSE, b), rtol=1e-9, atol=1e-11)


def test_negative_curvature_ends_cg_with_the_direction_it_was_met_along():
    op = matrix_with_spectrum(np.r_[-1.0, np.linspace(1, 2, 11)])
    found = cg(op, vector())
    assert found.status == "negative curvature"
    assert float(found.direction @ (op @ found.direction)) <= 0


def test_cg_stops_where_it_is_told_to():
    rng = np.random.default_rng(0)
    op = matrix_with_spectrum(np.geomspace(1e-2, 1, 300))
    b = torch.from_numpy(rng.standard_normal(300))
    found = cg(op, b, max_iterations=300, rtol=0.0, stop=relative_progress)
    k = max(10, found.num_iterations // 10)
    assert found.status == "stopped" and 10 <= found.num_iterations < 300
    assert (found.model[-1] - found.model[-1 - k]) / found.model[-1] < k * 5e-4
    assert cg(op, torch.zeros_like(b)).status == "converged"


@pytest.mark.parametrize("matrix", [A, MatrixOperator(DENSE - 2 * torch.eye(12, dtype=torch.float64))])
@pytest.mark.parametrize("warm", [False, True])
def test_how_often_cg_is_looked_at_changes_its_products_only(matrix, warm):
    x0 = vector(1) if warm else None
    often = cg(matrix, vector(), x0=x0, rtol=1e-8)
    seldom = cg(matrix, vector(), x0=x0, rtol=1e-8, look_every=7)
    assert seldom.status == often.status and torch.equal(seldom.x, often.x)
    assert (seldom.residuals == often.residuals).all() and (seldom.model == often.model).all()
    assert (seldom.direction is None) == (often.direction is None)
    assert seldom.direction is None or torch.equal(seldom.direction, often.direction)


def test_cg_reads_nothing_from_the_device_between_two_looks():
    reads = []
    for iterations in (5, 20):
        with Reads() as mode:
            cg(A, vector(), max_iterations=iterations, rtol=0.0, look_every=100)
        reads.append(mode.count)
    assert reads[0] == reads[1] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cg_that_may_go_on_for_ever_ends_converged(dtype):
    found = cg(DiagonalOperator(torch.linspace(1, 2, 50, dtype=dtype)), torch.ones(50, dtype=dtype), rtol=0.0)
    assert found.status == "converged" and 10 < found.num_iterations < 100


def test_cg_says_that_a_product_is_not_a_number():
    poisoned = MatrixOperator(torch.eye(3, dtype=torch.float64))
    poisoned.matrix[1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        cg(poisoned, torch.ones(3, dtype=torch.float64))


def test_what_cg_cannot_take_is_refused():
    with pytest.raises(InputError, match="max_iterations >= 1"):
        cg(A, vector(), max_iterations=0)
    for look_every in (0, -1):
        with pytest.raises(InputError, match="look_every of at least 1"):
            cg(A, vector(), look_every=look_every)
    with pytest.raises(InputError, match="multiplies tensors of shape"):
        cg(A, torch.ones(3, dtype=torch.float64))


# Partitions


def layout():
    return CASES["relu_mlp"]().layout


def sizes(partition: Partition) -> dict[str, int]:
    return {group.label: len(group) for group in partition}


def test_partitions_by_module_layer_parameter_depth_and_glob():
    own = layout()
    assert sizes(Partition.by_module(own)) == {"0": 30, "2": 35, "4": 18}
    assert sizes(Partition.by_layer(CASES["batchnorm_eval"]().layout)) == {"0": 20, "5": 27}
    assert len(Partition.by_parameter(own)) == 6 and Partition.by_parameter(own).complete
    nested = CASES["lstm"]().layout
    assert list(Partition.by_depth(nested, 1).groups) == ["lstm", "out"]
    assert sizes(Partition.by_glob(own, {"weights": "*.weight"})) == {"weights": 24 + 30 + 15}
    assert not Partition.by_glob(own, ["0", "4"]).complete
    assert list(Partition.of(own, "parameter").groups) == list(own.names)
    assert sizes(Partition.of(own, ["0", "2"])) == {"0": 30, "2": 35}
    assert Partition.of(own, Partition.by_module(own)) is not None and len(Partition.of(own, 1)) == 3


def test_rows_heads_and_random_groups():
    own = CASES["attention"]().layout
    rows = Partition.by_rows(own, "qkv.weight", 5)
    assert sizes(rows) == {"qkv.weight[0]": 20, "qkv.weight[5]": 20, "qkv.weight[10]": 8}
    heads = Partition.by_heads(own, "qkv.weight", 2)
    assert list(heads.groups)[:3] == ["qkv.weight q0", "qkv.weight q1", "qkv.weight k0"]
    start = own.slices["qkv.weight"].start
    assert heads["qkv.weight k1"].indices.tolist() == list(range(start + 6 * 4, start + 8 * 4))
    with pytest.raises(InputError, match="heads of equal size"):
        Partition.by_heads(own, "qkv.weight", 5)
    dealt = Partition.at_random(own, 7, generator=torch.Generator().manual_seed(0))
    assert dealt.complete and max(sizes(dealt).values()) - min(sizes(dealt).values()) <= 1
    assert not any(group.whole for group in dealt)


def test_groups_take_and_put_their_coordinates():
    own, v = layout(), torch.arange(83.0)
    for partition in (Partition.by_module(own), Partition.at_random(own, 3, generator=torch.Generator())):
        parts = {group.label: group.take(v) for group in partition}
        assert torch.equal(sum(group.embed(parts[group.label], own.n) for group in partition), v)
        lengths, members = partition.sections()
        sums = [part.sum() for part in v.split(lengths)]
        for label, part in parts.items():
            assert float(sum(sums[i] for i in members[label])) == float(part.sum())


def test_groups_that_overlap_or_are_empty_are_refused():
    own = layout()
    with pytest.raises(InputError, match="overlap"):
        Partition.by_glob(own, ["0", "*.bias"])
    with pytest.raises(InputError, match="empty or has indices outside"):
        Partition(own, {"a": torch.tensor([83])})
    with pytest.raises(InputError, match="did you mean"):
        Partition.by_glob(own, ["0.wieght"])
    with pytest.raises(InputError, match="another model"):
        Partition.of(own, Partition.by_module(CASES["mlp"]().layout))
    with pytest.raises(InputError, match="there is no group"):
        Partition.by_module(own)["1"]


class Broken(LinearOperator):
    """Products that break the contract in one way."""

    def __init__(self, how):
        super().__init__(6, dtype=torch.float64)
        self.how = how
        self.matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
        if how == "not symmetric":
            self.matrix[0, 1] = 0.5

    def _matvec(self, v):
        product = self.matrix @ v
        if self.how == "changes the vector":
            v.zero_()
        return {
            "NaN": product * torch.nan,
            "3,": product[:3],
            "float32": product.float(),
            "ndarray": product.numpy(),
        }.get(self.how, product)


@pytest.mark.parametrize("how", ["3,", "float32", "ndarray", "changes the vector", "not symmetric", "NaN"])
def test_an_operator_that_breaks_its_contract_is_refused(how):
    with pytest.raises(SpectraError, match=how):
        analyze_operator(Broken(how))
