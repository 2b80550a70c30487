"""The loss on lines and planes: its values, the quadratic model beside them, their errors, and interruptions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle import Oracle
from problems import CASES, batchnorm_eval, mlp, rectifier_network, three_layers, uneven_last_batch
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, eigsh, loss_surface, random_direction, towards
from pyhessian_spectra.analysis import surface as surface_module
from pyhessian_spectra.curvature import along
from pyhessian_spectra.errors import InputError, UnverifiedError

STEPS = np.array([-0.5, 0.1, 1.0])


def drawn(n: int, count: int, seed: int = 3) -> Tensor:
    return torch.randn(n, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_losses_slopes_and_curvatures_on_a_plane_are_those_of_the_loss(case):
    """By torch.func at every position; the directions are neither orthogonal nor of unit length."""
    risk = CASES[case]()
    by_hand, v = Oracle(risk), drawn(risk.n, 2) / risk.n**0.5
    found = loss_surface(risk, v, positions=[STEPS, STEPS[1:]])
    expected = [
        [float(by_hand.loss(by_hand.theta + v @ torch.tensor([a, b]).double())) for b in STEPS[1:]] for a in STEPS
    ]
    assert found.loss.shape == (3, 2)
    assert found.loss == pytest.approx(np.array(expected), rel=1e-12)
    assert found.centre == pytest.approx(float(by_hand.loss(by_hand.theta)), rel=1e-12)
    assert found.rise == pytest.approx(np.array(expected) - found.centre, abs=1e-12 * abs(found.loss).max())
    assert found.slopes == pytest.approx((v.T @ by_hand.gradient()).numpy(), rel=1e-9, abs=1e-12)
    bends = (v.T @ by_hand.hessian() @ v).numpy()
    assert found.curvatures == pytest.approx(bends, abs=1e-11 * abs(bends).max())
    assert found.gram == pytest.approx((v.T @ v).numpy())


def quadratic(reduction: str = "mean", batches: int = 5) -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x, y = (torch.randn(6 * batches, k, generator=generator, dtype=torch.float64) for k in (4, 2))
    return EmpiricalRisk(model, nn.MSELoss(reduction=reduction), list(zip(x.split(6), y.split(6), strict=True)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_model_of_a_quadratic_loss_is_the_loss_and_has_its_errors(reduction):
    risk = quadratic(reduction)
    for count in (1, 2):
        found = loss_surface(risk, drawn(risk.n, count), positions=np.linspace(-3, 3, 4))
        scale = abs(found.rise).max()
        assert found.model == pytest.approx(found.rise, abs=1e-12 * scale)
        assert found.model_stderr == pytest.approx(found.rise_stderr, abs=1e-12 * scale)
        assert found.loss.shape == (4,) * count


def test_the_model_differs_from_another_loss_by_the_cube_of_the_step():
    """Taylor: halving the step divides what is missed by eight."""
    risk = mlp()
    missed = [
        abs(s.rise - s.model).max()
        for s in (loss_surface(risk, drawn(risk.n, 1), positions=[0.0, h]) for h in (2e-2, 1e-2))
    ]
    assert missed[0] / missed[1] == pytest.approx(8, rel=0.1)


def test_errors_of_rises_are_of_differences_on_the_same_batches():
    """Of equal batches the jackknife is the standard error of a mean; that of a rise is far below that of the loss."""
    risk = three_layers()
    v = drawn(risk.n, 1)[:, 0] / 50
    found = loss_surface(risk, v, positions=[-1.0, 0.0, 1.0])
    point = risk.point()
    own = np.array([along.batch_losses(risk, point.moved(v, t)).numpy() for t in (-1.0, 0.0, 1.0)])
    error = lambda x: x.std(axis=-1, ddof=1) / x.shape[-1] ** 0.5  # noqa: E731
    assert found.loss_stderr == pytest.approx(error(own), rel=1e-9)
    assert found.rise_stderr == pytest.approx(error(own - own[1]), rel=1e-9, abs=1e-15)
    assert found.centre_stderr == pytest.approx(float(error(own[1])), rel=1e-9)
    assert found.rise_stderr[1] == 0 and (found.rise_stderr < 0.5 * found.loss_stderr).all()
    slopes = np.array([float(g @ v) for _, g in risk.batch_gradients(point)])
    assert found.slopes_stderr == pytest.approx([error(slopes)], rel=1e-9)


def test_one_batch_tells_no_errors_of_the_data():
    found = loss_surface(mlp(), drawn(mlp().n, 1), positions=STEPS)
    assert (found.loss_stderr, found.rise_stderr, found.model_stderr, found.centre_stderr) == (None,) * 4
    assert (found.slopes_stderr, found.curvatures_stderr) == (None, None)


def test_eigenpairs_are_directions_from_the_largest_with_their_eigenvalues_as_curvatures():
    risk = three_layers()
    pairs = eigsh(HessianOperator(risk), 2, generator=torch.Generator().manual_seed(0))
    found = loss_surface(risk, pairs, positions=STEPS)
    assert found.labels == ("eigenvector 1", "eigenvector 2")
    assert np.diag(found.curvatures) == pytest.approx(pairs.eigenvalues[::-1], rel=1e-4)
    assert found.curvatures[0, 1] == pytest.approx(0, abs=1e-3 * pairs.eigenvalues[-1])
    assert found.gram == pytest.approx(np.eye(2), abs=1e-6)
    first = loss_surface(risk, pairs.take(slice(-1, None)), positions=STEPS)
    assert first.curvatures[0, 0] == found.curvatures[0, 0]
    array = pairs.eigenvectors[:, 1]
    for given in (array, torch.from_numpy(array.copy()), [array], -array[::-1][::-1]):
        assert loss_surface(risk, given, positions=STEPS).slopes ** 2 == pytest.approx(first.slopes**2)


def test_rounding_bounds_what_float32_makes_of_the_losses_and_derivatives():
    model, (x, y) = rectifier_network(dtype=torch.float32)
    v, risks = (drawn(rectifier_risk(model, x, y).n, 2) / 5).float(), {}
    for dtype in (torch.float32, torch.float64):
        risks[dtype] = rectifier_risk(copy.deepcopy(model).to(dtype), x.to(dtype), y)
    found, exact = (loss_surface(risks[dtype], v, positions=STEPS) for dtype in (torch.float32, torch.float64))
    assert 0 < abs(found.loss - exact.loss).max() <= found.rounding < 1e-5
    assert (abs(found.slopes - exact.slopes) <= found.slopes_rounding + 1e-12).all()
    assert (abs(found.curvatures - exact.curvatures) <= found.curvatures_rounding + 1e-12).all()
    assert exact.rounding < 1e-12 and (found.curvatures_rounding < 1e-4).all()


def rectifier_risk(model: nn.Module, x: Tensor, y: Tensor) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))


def test_a_loss_that_is_not_finite_somewhere_stays_so_and_is_said():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    x = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None]
    risk = EmpiricalRisk(model, lambda z, y: (z.log() - y).square().mean(), [(x[:3], x[:3]), (x[3:], x[3:])])
    found = loss_surface(risk, torch.ones(1, dtype=torch.float64), positions=[-2.0, -1.0, 0.0, 1.0])
    assert np.isnan(found.loss[0]) and np.isinf(found.loss[1]) and np.isfinite(found.loss[2:]).all()
    assert np.isfinite(found.model).all() and np.isfinite(found.rise_stderr[2:]).all() and np.isfinite(found.rounding)
    assert "The loss is NaN or infinite at 2 of 4 positions" in found.notes[-1].text


class Killed(BaseException):
    """The process ends here."""


def test_an_interrupted_surface_goes_on_to_the_same_numbers_and_takes_no_pass_twice(tmp_path, monkeypatch):
    risk, v = uneven_last_batch(), drawn(uneven_last_batch().n, 2)
    seen, taken, alive, real = [], [], [], surface_module.batch_losses

    def counted(*args):
        if len(taken) == 5 and not alive:
            raise Killed
        taken.append(1)
        return real(*args)

    whole = loss_surface(risk, v, positions=STEPS)
    monkeypatch.setattr(surface_module, "batch_losses", counted)
    with pytest.raises(Killed):
        loss_surface(risk, v, positions=STEPS, journal=tmp_path / "kept")
    alive.append(True)
    again = loss_surface(risk, v, positions=STEPS, journal=tmp_path / "kept", progress=lambda *told: seen.append(told))
    assert np.array_equal(again.loss, whole.loss) and np.array_equal(again.curvatures, whole.curvatures)
    assert len(taken) == 10 + 5  # nine positions and the centre; this and the corners again
    _, done, total = seen[-1]
    assert done == total == len(seen) and [note.kind for note in again.notes] == ["data"]
    third = loss_surface(risk, v, positions=STEPS, journal=tmp_path / "kept")
    assert np.array_equal(third.model, whole.model) and len(taken) == 15


def test_a_journal_of_other_directions_is_not_used(tmp_path):
    risk = mlp()
    loss_surface(risk, drawn(risk.n, 1), positions=STEPS, journal=tmp_path)
    other = drawn(risk.n, 1, seed=4)
    found = loss_surface(risk, other, positions=STEPS, journal=tmp_path)
    assert np.array_equal(found.loss, loss_surface(risk, other, positions=STEPS).loss)
    assert [note.kind for note in found.notes] == ["afresh"]


def test_a_line_towards_another_checkpoint_ends_there():
    risk = mlp()
    other = copy.deepcopy(risk.model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3)
    before = {name: p.clone() for name, p in risk.model.state_dict().items()}
    found = loss_surface(risk, towards(risk, other.state_dict()), positions=np.linspace(0, 1, 5))
    assert found.loss[0] == found.centre == pytest.approx(risk.loss(), rel=1e-14)
    assert found.loss[-1] == pytest.approx(EmpiricalRisk(other, risk.loss_fn, risk.data).loss(), rel=1e-13)
    assert all(torch.equal(before[name], p) for name, p in risk.model.state_dict().items())


def test_what_would_end_a_line_elsewhere_is_refused():
    risk = batchnorm_eval()
    state = {name: t.clone() for name, t in risk.model.state_dict().items()}
    assert not towards(risk, state).any()
    state["1.running_mean"] += 1
    with pytest.raises(InputError, match=r"1\.running_mean differs between the checkpoints"):
        towards(risk, state)
    trained = EmpiricalRisk(risk.model, risk.loss_fn, risk.data, mode="train")
    assert not towards(trained, state).any()
    with pytest.raises(InputError, match=r"0\.weight differs .* no coordinate"):
        towards(trained.restrict("5"), {**state, "0.weight": state["0.weight"] + 1})
    with pytest.raises(InputError, match=r"5\.bias must be \(3,\) in the other checkpoint too, got nothing"):
        towards(trained, {name: t for name, t in state.items() if name != "5.bias"})
    with pytest.raises(InputError, match=r"5\.bias must be \(3,\) .* got \(4,\)"):
        towards(trained, {**state, "5.bias": torch.ones(4)})


def test_random_directions_have_the_norms_of_the_networks_filters_and_none_in_vectors():
    risk = batchnorm_eval()
    with torch.random.fork_rng(devices=[]):
        state = torch.random.get_rng_state()
        v = random_direction(risk, generator=torch.Generator().manual_seed(0))
        assert torch.equal(state, torch.random.get_rng_state())
    for name, part in zip(risk.layout.names, risk.layout.unflatten(v), strict=True):
        own = risk.model.get_parameter(name).detach()
        if own.dim() < 2:
            assert not part.any()
        else:
            assert torch.allclose(part.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1), rtol=1e-12)
    assert not torch.equal(v, random_direction(risk, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("directions", "positions", "sentence"),
    [
        (torch.ones(7), STEPS, r"one or two vectors of n = 43, as \(n,\) or \(n, 2\), got \(7, 1\)"),
        (drawn(43, 3), STEPS, r"got \(43, 3\); of more eigenpairs take some"),
        ([torch.ones(43), torch.ones(4)], STEPS, r"vectors \(43,\) of the risk's parameters, got \(43,\), \(4,\)"),
        ([], STEPS, r"got \(43, 0\)"),
        (torch.zeros(43), STEPS, "finite and not zero"),
        (torch.full((43,), torch.nan), STEPS, "finite and not zero"),
        (torch.ones(43, 2), STEPS, "parallel"),
        (drawn(43, 1), [1.0, 0.0], "ascending"),
        (drawn(43, 1), [0.0], "ascending"),
        (drawn(43, 1), 3.0, "ascending"),
        (drawn(43, 1), [STEPS, STEPS], "for each of the 1 directions"),
        (drawn(43, 2), [0.0, np.nan], "finite"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(directions, positions, sentence):
    with pytest.raises(InputError, match=sentence):
        loss_surface(mlp(), directions, positions=positions)


def test_a_gradient_that_is_not_the_losss_is_refused():
    risk = mlp()
    detached = EmpiricalRisk(risk.model, lambda z, y: (z * z.detach()).mean(), risk.data)
    with pytest.raises(UnverifiedError):
        loss_surface(detached, drawn(risk.n, 1), positions=STEPS)
    with pytest.raises(InputError, match="labels must name each of the 1 directions, got 2"):
        loss_surface(risk, drawn(risk.n, 1), labels=["a", "b"])


def test_losses_in_float32_are_within_their_rounding_on_many_surfaces():
    fell = 0
    for seed in range(12):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, x, y = (
                nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
                torch.randn(20, 4),
                torch.arange(20) % 3,
            )
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
        found = loss_surface(risk, drawn(risk.n, 1, seed).float(), positions=np.linspace(-0.5, 0.5, 9))
        precise = EmpiricalRisk(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), (x.double(), y))
        step = drawn(risk.n, 1, seed).float().double()[:, 0]
        for place, loss in zip(found.positions[0], found.loss, strict=True):
            truth = precise.loss(precise.point().moved(step, float(place)))
            fell += abs(loss - truth) > found.rounding
    assert not fell


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        (None, "directions must be"),
        ("ab", "directions must be"),
        (torch.ones(43, dtype=torch.complex64), "complex"),
    ],
)
def test_what_is_no_direction_is_refused(directions, said):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (torch.ones(4, 4), torch.arange(4) % 3))
    with pytest.raises(InputError, match=said):
        loss_surface(risk, directions)
    with pytest.raises(InputError, match="takes an EmpiricalRisk"):
        loss_surface(model, torch.ones(43))
    with pytest.raises(InputError, match="point must be"):
        loss_surface(risk, torch.ones(43), point=model.state_dict())
    with pytest.raises(InputError, match="of another model"):
        towards(risk, {**model.state_dict(), "more": torch.ones(1)})
    with pytest.raises(InputError, match="state must be"):
        towards(risk, None)
    with pytest.raises(InputError, match="generator must be"):
        random_direction(risk, generator=3)
