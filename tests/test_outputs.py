"""Models that return several tensors: the Gauss-Newton matrix takes each as an output of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from oracle import Oracle
from problems import _classes, _filled
from test_curvature import relative_error
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, ResidualOperator, ggn_gram
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers import HessianFree

DATA = _classes(12, (4,), 3)
ce = nn.functional.cross_entropy


@dataclass
class Answer:
    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class Network(nn.Module):
    """Logits are computed from the features that are returned beside them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.head, self.how = nn.Linear(4, 5), nn.Linear(5, 3), how

    def forward(self, x: Tensor):
        features = torch.tanh(self.body(x))
        logits = self.head(features)
        if self.how == "joined":
            return torch.cat([logits, features], dim=1)
        return {"tuple": (logits, features), "dict": {"logits": logits, "features": features}}.get(
            self.how, Answer(logits, features, ce(logits, DATA[1]))
        )


def parts_of(outputs) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, Tensor):
        return outputs[:, :3], outputs[:, 3:]
    if isinstance(outputs, dict):
        return outputs["logits"], outputs["features"]
    return outputs if isinstance(outputs, tuple) else (outputs.logits, outputs.features)


LOSSES = {
    "logits": lambda outputs, y: ce(parts_of(outputs)[0], y),
    "both": lambda outputs, y: ce(parts_of(outputs)[0], y) + parts_of(outputs)[1].square().mean(),
    "features": lambda outputs, y: parts_of(outputs)[1].square().mean(),
}


def risk_of(how: str, loss: str, **options) -> EmpiricalRisk:
    return EmpiricalRisk(_filled(Network(how)), LOSSES[loss], DATA, **options)


@pytest.mark.parametrize("how", ["tuple", "dict", "dataclass"])
@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_that_are_computed_from_one_another_are_outputs_of_their_own(how, loss):
    select = parts_of if how != "tuple" else None
    expected = Oracle(risk_of("joined", loss)).ggn()
    risk = risk_of(how, loss)
    if how != "tuple":  # tensors within a mapping or an object are chosen, and these two depend on one another
        with pytest.raises(InputError, match="one of the outputs is computed from another"):
            GGNOperator(risk_of(how, loss, select=select)).to_dense()
        return
    assert relative_error(GGNOperator(risk).to_dense(), expected) < 1e-12
    rest = HessianOperator(risk).to_dense() - ResidualOperator(risk).to_dense()
    assert relative_error(rest, expected) < 1e-12
    gram = ggn_gram(risk).trace()
    assert abs(gram.value - float(expected.trace())) <= 2 * gram.rounding + 1e-14


def test_a_loss_that_the_model_computes_itself_is_one_of_the_selected_logits():
    risk = EmpiricalRisk(
        _filled(Network("dataclass")), lambda outputs, y: outputs.loss, DATA, select=lambda outputs: outputs.logits
    )
    assert relative_error(GGNOperator(risk).to_dense(), Oracle(risk_of("joined", "logits")).ggn()) < 1e-12


def test_outputs_that_the_loss_is_not_computed_from_are_refused():
    for select in (lambda outputs: outputs[0].softmax(dim=1), lambda outputs: outputs[0].reshape(-1)):
        with pytest.raises(InputError, match="not computed from the outputs"):
            GGNOperator(risk_of("tuple", "logits", select=select)).to_dense()


def test_a_closure_cannot_have_outputs_that_depend_on_one_another():
    model, (x, y) = _filled(Network("tuple")), DATA

    def closure(copied: bool):
        features = torch.tanh(model.body(x))
        apart = features.clone() if copied else features
        logits = model.head(features)
        return ce(logits, y) + apart.square().mean(), (logits, apart)

    with pytest.raises(InputError, match="one of the outputs is computed from another"):
        HessianFree(model.parameters(), damping=0.1).step(lambda: closure(False))
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    oracle = Oracle(risk_of("joined", "both"))
    damped = oracle.ggn() + 0.1 * torch.eye(len(before), dtype=torch.float64)
    HessianFree(model.parameters(), damping=0.1, lr=1.0, max_cg_iterations=500, cg_rtol=1e-13).step(
        lambda: closure(True)
    )
    step = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    torch.testing.assert_close(step, -torch.linalg.solve(damped, oracle.gradient()), rtol=1e-8, atol=1e-10)


class _Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.held = [self.w]

    def forward(self, x: Tensor) -> Tensor:
        return self.held[0].square().sum() + 0 * x.sum()


def test_a_product_at_the_live_point_vouches_for_no_copied_one():
    risk = EmpiricalRisk(_Hidden(), lambda outputs, y: outputs, DATA)
    live = HessianOperator(risk, point=risk.live())
    assert (live @ torch.ones(2, dtype=torch.float64)).tolist() == [2.0, 2.0]
    with pytest.raises(InputError, match="through a reference of its own"):
        HessianOperator(risk).to_dense()
