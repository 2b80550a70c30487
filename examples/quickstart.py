"""From a model in memory to its Hessian spectrum: python examples/quickstart.py"""

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, analyze
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.report import format_with_error, write_report

torch.manual_seed(0)
data = load_data("digits", num_examples=300)
model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(300):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(data.inputs), data.targets)
    loss.backward()
    optimizer.step()

risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (data.inputs, data.targets))
analysis = analyze(risk, num_eigenvalues=5, problem={"model": "64-16-10", "data": "300 digits"})

print(f"n = {risk.n} parameters, N = {risk.num_examples} examples")
for value, residual in zip(analysis.full.largest.eigenvalues[::-1], analysis.full.largest.residuals[::-1], strict=True):
    print("eigenvalue", format_with_error(value, residual))
print("trace", format_with_error(analysis.full.trace.value, analysis.full.trace.stderr))
print(write_report([analysis], "quickstart-report"))
