"""Named problems that every operator is tested on, small enough for a dense oracle, in float64.

Each exercises something that curvature libraries are known to get wrong. A case is a factory, so that no test sees
another's model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk

torch.set_num_threads(1)  # the problems are tiny; threads only add their start-up


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _filled(model: nn.Module, seed: int = 0, scale: float = 0.4) -> nn.Module:
    """Parameters from a generator of our own, in float64; running statistics away from their start."""
    generator = _generator(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        for name, b in model.named_buffers():
            if "running" in name:
                b.copy_(0.5 + torch.rand(b.shape, generator=generator, dtype=torch.float64))
    return model


def _classes(n: int, inputs: tuple[int, ...], classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = _generator(seed)
    x = torch.randn(n, *inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def mlp() -> EmpiricalRisk:
    """The plain case."""
    model = _filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), _classes(16, (4,), 3))


def relu_mlp() -> EmpiricalRisk:
    """Piecewise linear in each layer: H_ll = G_ll."""
    model = _filled(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), _classes(20, (4,), 3))


def uneven_last_batch() -> EmpiricalRisk:
    """Batches of 60 and 4 examples must weigh 60 and 4."""
    x, y = _classes(64, (4,), 3)
    model = _filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x[:60], y[:60]), (x[60:], y[60:])])


def mean_squared_error() -> EmpiricalRisk:
    """A regression loss averages over elements."""
    generator = _generator(2)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    model = _filled(nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 2)))
    return EmpiricalRisk(model, nn.MSELoss(), [(x[:5], y[:5]), (x[5:], y[5:])])


def frozen_layer() -> EmpiricalRisk:
    """Frozen parameters are constants."""
    model = _filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    model[2].requires_grad_(False)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), _classes(16, (4,), 3))


class _WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


def unused_parameter() -> EmpiricalRisk:
    """A parameter the output does not depend on has zero rows."""
    return EmpiricalRisk(_filled(_WithUnused()), nn.CrossEntropyLoss(), _classes(16, (4,), 3))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens).mean(dim=1)))


def tied_weights() -> EmpiricalRisk:
    """A shared weight is one coordinate block that acts in two places."""
    tokens = torch.randint(7, (10, 3), generator=_generator(3))
    targets = torch.randint(7, (10,), generator=_generator(4))
    return EmpiricalRisk(_filled(_Tied()), nn.CrossEntropyLoss(), (tokens, targets))


def shared_module() -> EmpiricalRisk:
    """A module at two places of the model is one coordinate block; torch's functional_call forgets its parameters."""
    twice = nn.Linear(4, 4)
    model = _filled(nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh(), nn.Linear(4, 3)))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), _classes(12, (4,), 3))


def _batchnorm_net() -> nn.Module:
    return _filled(
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        )
    )


def batchnorm_eval() -> EmpiricalRisk:
    """Running statistics are constants."""
    return EmpiricalRisk(_batchnorm_net(), nn.CrossEntropyLoss(), _classes(8, (1, 6, 6), 3))


def batchnorm_train() -> EmpiricalRisk:
    """Batch statistics depend on the parameters; running ones must not move."""
    return EmpiricalRisk(_batchnorm_net(), nn.CrossEntropyLoss(), _classes(8, (1, 6, 6), 3), mode="train")


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def lstm() -> EmpiricalRisk:
    """Recurrent layers have fused kernels without a double backward on some devices."""
    return EmpiricalRisk(_filled(_Recurrent()), nn.CrossEntropyLoss(), _classes(6, (4, 3), 3))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(6, 4), nn.Linear(4, 12), nn.Linear(4, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0])


def attention() -> EmpiricalRisk:
    """Fused attention has no double backward; the loss is taken token by token."""
    tokens = torch.randint(6, (5, 4), generator=_generator(5))
    targets = torch.randint(6, (5, 4), generator=_generator(6))
    return EmpiricalRisk(_filled(_Attention()), _token_loss, (tokens, targets))


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def ignored_tokens() -> EmpiricalRisk:
    """Padding is not a term of the loss, so batches weigh by what is left of them."""
    tokens = torch.randint(6, (6, 4), generator=_generator(7))
    targets = torch.randint(6, (6, 4), generator=_generator(8))
    targets[0, 1:], targets[2, :], targets[5, 3:] = -100, -100, -100
    batches = [(tokens[:2], targets[:2]), (tokens[2:3], targets[2:3]), (tokens[3:], targets[3:])]
    return EmpiricalRisk(_filled(_Attention()), _token_loss, batches)


def class_weights() -> EmpiricalRisk:
    """A weighted cross-entropy divides by the summed weights of the targets."""
    x, y = _classes(18, (4,), 3)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    model = _filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    return EmpiricalRisk(model, loss, [(x[:7], y[:7]), (x[7:], y[7:])])


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.a(left)) * self.b(right)


def dictionary_batches() -> EmpiricalRisk:
    """Mappings go to the model as keywords, less the targets."""
    generator = _generator(9)

    def batch(n: int) -> dict[str, Tensor]:
        return {
            "left": torch.randn(n, 3, generator=generator, dtype=torch.float64),
            "right": torch.randn(n, 2, generator=generator, dtype=torch.float64),
            "labels": torch.randint(4, (n,), generator=generator),
        }

    return EmpiricalRisk(_filled(_Keywords()), nn.CrossEntropyLoss(), [batch(5), batch(3)])


def restricted() -> EmpiricalRisk:
    """A layer's own block."""
    return relu_mlp().restrict(["2"])


class InFloat32(nn.Module):
    """Computes in float32 whatever its parameters are in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        single = "torch.FloatTensor"  # the dtype itself, in a float32 model, says no more than that it is one
        given = {name: p.type(single) for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, given, (x.type(single),)).to(x.dtype)


def three_layers(batches: int = 6, activation: type[nn.Module] = nn.ReLU) -> EmpiricalRisk:
    """A classifier of three layers, with 12 examples a batch."""
    model = _filled(nn.Sequential(nn.Linear(6, 9), activation(), nn.Linear(9, 8), activation(), nn.Linear(8, 3)))
    x, y = _classes(12 * batches, (6,), 3)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), list(zip(x.split(12), y.split(12), strict=True)))


#: Settings by which :func:`three_layers` is analysed in each of the ways there are.
WAYS: Mapping[str, dict[str, object]] = {
    "built": {},
    "pass": {"exact_limit": 0, "num_eigenvalues": 4, "gauss_newton": "never"},
    "rows": {"exact_limit": 0, "num_eigenvalues": 4, "gauss_newton": "always"},
}


def rectifier_network(
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    widths: Sequence[int] = (4, 6, 5, 3),
    examples: int = 20,
) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """A rectifier network and a batch for it."""
    model = nn.Sequential(
        *(part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b, bias=bias), nn.ReLU()))
    )[:-1]
    draw = _generator()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.6)
    x = torch.randn(examples, widths[0], generator=draw, dtype=torch.float64)
    return model.to(dtype), (x.to(dtype), torch.randint(widths[-1], (examples,), generator=draw))


CASES: Mapping[str, Callable[[], EmpiricalRisk]] = {
    case.__name__: case
    for case in (
        mlp,
        relu_mlp,
        uneven_last_batch,
        mean_squared_error,
        frozen_layer,
        unused_parameter,
        tied_weights,
        shared_module,
        batchnorm_eval,
        batchnorm_train,
        lstm,
        attention,
        ignored_tokens,
        class_weights,
        dictionary_batches,
        restricted,
    )
}
