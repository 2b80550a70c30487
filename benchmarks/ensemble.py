"""Thousands of 74-parameter networks, trained and diagonalised: at once, and one after the other.

    python benchmarks/ensemble.py                # 5,000 starts against a loop over 20 of them

The loop is plain PyTorch (autograd, in-place steps, ``torch.autograd.functional.hessian``, LAPACK) on one thread, the
fastest for operations this small. It is run on a few of the starts only, and its time per step and per Hessian is
carried over to all of them; the table says so.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyhessian_spectra.ensembles import ensemble_eigenvalues, sphere_starts, train_ensemble

HIDDEN, POINTS, STD = 6, 50, 0.3


def blobs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two Gaussian blobs of 50 points each at (1, 1) and (-1, -1)."""
    y = torch.arange(2).repeat_interleave(POINTS)
    return (1.0 - 2 * y)[:, None] + STD * torch.randn(2 * POINTS, 2, generator=generator), y


def loop(model: nn.Module, data: tuple[Tensor, Tensor], starts: Tensor, *, step: float, tolerance: float) -> tuple:
    """Seconds per step and seconds per exact spectrum of one network at a time."""
    x, y = data
    parameters = list(model.parameters())
    names, shapes = [name for name, _ in model.named_parameters()], [p.shape for p in parameters]
    twin = nn.Sequential(*(type(m)(m.in_features, m.out_features) if hasattr(m, "weight") else m for m in model))
    twin = twin.double()
    steps, training, diagonalising = 0, 0.0, 0.0

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(twin, values, (x.double(),)), y)

    for start in starts:
        nn.utils.vector_to_parameters(start.clone(), parameters)
        begun = time.perf_counter()
        while True:
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
            if math.sqrt(sum(float(g.square().sum()) for g in gradients)) <= tolerance:
                break
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-step)
            steps += 1
        training += time.perf_counter() - begun
        begun = time.perf_counter()
        flat = nn.utils.parameters_to_vector(parameters).detach().double()
        torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
        diagonalising += time.perf_counter() - begun
    return training / steps, diagonalising / len(starts)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5000)
    parser.add_argument("--loop-starts", type=int, default=20)
    parser.add_argument("--step", type=float, default=1.0)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    data = blobs(generator)
    model = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
    n = sum(p.numel() for p in model.parameters())
    starts = sphere_starts(options.starts, n, radius=0.3 * math.sqrt(n), generator=generator, dtype=torch.float32)

    begun = time.perf_counter()
    trained = train_ensemble(
        model, nn.functional.cross_entropy, data, starts, step=options.step, tolerance=options.tolerance
    )
    training = time.perf_counter() - begun
    begun = time.perf_counter()
    ensemble_eigenvalues(model, nn.functional.cross_entropy, data, trained.parameters.double())
    diagonalising = time.perf_counter() - begun

    torch.set_num_threads(1)
    few = starts[:: max(1, len(starts) // options.loop_starts)][: options.loop_starts]
    per_step, per_spectrum = loop(model, data, few, step=options.step, tolerance=options.tolerance)
    steps = int(trained.iterations.sum())
    slow_training, slow_diagonalising = per_step * steps, per_spectrum * len(starts)
    print(trained)
    print(f"{n} parameters, {2 * POINTS} examples, {steps:,} steps in all, {options.threads} threads")
    print(f"{'':>14} {'at once':>10} {'loop':>10} {'ratio':>7}    (loop: measured on {len(few)} starts, carried over)")
    for name, fast, slow in (
        ("training", training, slow_training),
        ("diagonalising", diagonalising, slow_diagonalising),
        ("together", training + diagonalising, slow_training + slow_diagonalising),
    ):
        print(f"{name:>14} {fast:9.1f}s {slow:9.1f}s {slow / fast:6.1f}x")


if __name__ == "__main__":
    main()
