"""A model, data and loss of your own.

python examples/own_problem.py             # trains for a moment and writes own.pt
cd examples
pyhessian-spectra report ../own.pt --problem own_problem:load --out ../own-report
"""

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk


class TwoBranches(nn.Module):
    """Any module will do, as long as its operations can be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Sequential(nn.Linear(4, 12), nn.Tanh())
        self.rough = nn.Sequential(nn.Linear(4, 12), nn.ReLU())
        self.head = nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.smooth(x), self.rough(x)], dim=1))


def measurements() -> tuple[torch.Tensor, torch.Tensor]:
    """The data: always the same ones, in the same order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def load(checkpoint: str) -> EmpiricalRisk:
    """What ``--problem`` names: from the path of a checkpoint to the function that is analysed."""
    model = TwoBranches()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    x, y = measurements()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    return EmpiricalRisk(model, nn.SmoothL1Loss(), batches)


if __name__ == "__main__":
    torch.manual_seed(0)
    network, (x, y) = TwoBranches(), measurements()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.smooth_l1_loss(network(x), y).backward()
        optimizer.step()
    torch.save(network.state_dict(), "own.pt")
    print("own.pt")
