"""LSTM that reads an image row by row and classifies from its last state."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.problems.state_dicts import StateDict


class TwiceDifferentiableLSTM(nn.LSTM):
    """``nn.LSTM`` (parameters and their names) stepped cell by cell: the fused kernels have no double backward."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Hidden states of the top layer, shape (N, T, hidden), of a sequence of shape (N, T, features)."""
        for w_ih, w_hh, b_ih, b_hh in self.all_weights:
            from_inputs = F.linear(x, w_ih, b_ih + b_hh)
            hidden = cell = x.new_zeros(x.shape[0], self.hidden_size)
            states = []
            for step in range(x.shape[1]):
                gates = from_inputs[:, step] + F.linear(hidden, w_hh)
                take, forget, candidate, emit = gates.chunk(4, dim=1)
                cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(candidate)
                hidden = torch.sigmoid(emit) * torch.tanh(cell)
                states.append(hidden)
            x = torch.stack(states, dim=1)
        return x


class LSTMClassifier(nn.Sequential):
    """LSTM layers on rows, (N, T, features), and a linear layer called ``head`` on the last step, to (N, classes)."""

    def __init__(
        self, *, features: int = 28, hidden: int = 128, layers: int = 1, classes: int = 10, head: str = "fc"
    ) -> None:
        lstm = TwiceDifferentiableLSTM(features, hidden, layers, batch_first=True)
        super().__init__(OrderedDict({"lstm": lstm, head: nn.Linear(hidden, classes)}))

    def forward(self, x: Tensor) -> Tensor:
        lstm, head = self
        return head(lstm(x)[:, -1])


def infer(state_dict: StateDict) -> dict[str, Any]:
    """All sizes, the number of layers and the name of the head."""
    others = [key for key in state_dict if not key.startswith("lstm.") and key.endswith(".weight")]
    head = others[0].removesuffix(".weight")
    return {
        "features": state_dict["lstm.weight_ih_l0"].shape[1],
        "hidden": state_dict["lstm.weight_hh_l0"].shape[1],
        "layers": sum(key.startswith("lstm.weight_hh_l") for key in state_dict),
        "classes": state_dict[f"{head}.weight"].shape[0],
        "head": head,
    }
