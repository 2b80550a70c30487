"""LoRA folders become risks in the adapter's parameters, with the base model frozen and nothing downloaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev

from pyhessian_spectra import GGNOperator, HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import load_problem, read_checkpoint
from tests.folders import gpt2, network_refused, padded, save, seeded

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
peft = pytest.importorskip("peft", reason="peft is not installed")

_SCALE = 3.0  # alpha / r
_RANK = 2


@pytest.fixture
def base(tmp_path):
    return save(gpt2(), tmp_path / "base")


@pytest.fixture
def folder(tmp_path, base):
    """An adapter of the attention's first layer, whose B is not zero: it has been trained."""
    settings = peft.LoraConfig(
        r=_RANK, lora_alpha=_SCALE * _RANK, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    adapted = seeded(lambda: peft.get_peft_model(gpt2(), settings))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.linspace(-0.5, 0.5, p.numel()).view_as(p))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return save(adapted, tmp_path / "adapter")


@pytest.fixture
def data(tmp_path):
    return padded(tmp_path)


def _merged(folder, data):
    """The mean loss of predicted tokens as a function of A and B, by hand: the layer's weight is W + scale (B A)^T."""
    from safetensors.torch import load_file

    factors = {("A" if "lora_A" in name else "B"): t.double() for name, t in load_file(folder).items()}
    arrays = {key: torch.from_numpy(array) for key, array in np.load(data).items()}
    labels = arrays["input_ids"].masked_fill(~arrays["attention_mask"], -100)[:, 1:].flatten()
    model = gpt2(attn_implementation="eager").double()
    weight = model.transformer.h[0].attn.c_attn.weight.detach()

    def logits(theta):
        a, b = theta.split([factors["A"].numel(), factors["B"].numel()])
        change = _SCALE * (b.view_as(factors["B"]) @ a.view_as(factors["A"])).T
        values = {"transformer.h.0.attn.c_attn.weight": weight + change}
        inputs = {"input_ids": arrays["input_ids"], "attention_mask": arrays["attention_mask"].long()}
        return torch.func.functional_call(model, values, (), inputs).logits[:, :-1].flatten(0, 1)

    start = torch.cat([factors["A"].flatten(), factors["B"].flatten()])
    return start, logits, labels


def test_hessian_and_gauss_newton_matrix_are_those_in_the_adapters_factors(folder, data):
    risk = load_problem(folder, data=str(data), batch_size=2, dtype="float64").risk
    theta, logits, labels = _merged(folder / "adapter_model.safetensors", data)
    assert [name.split(".")[-3] for name in risk.layout.names] == ["lora_A", "lora_B"]
    loss = lambda z: F.cross_entropy(z, labels)  # noqa: E731
    assert risk.loss() == pytest.approx(float(loss(logits(theta)).detach()), rel=1e-12)
    jacobian = jacrev(logits)(theta).flatten(0, 1)
    curvature = jacrev(grad(loss))(logits(theta).detach()).reshape(len(jacobian), -1)
    full = jacrev(grad(lambda v: loss(logits(v))))(theta)  # reverse over reverse: see test_pretrained.py
    wanted = full.detach(), (jacobian.T @ curvature @ jacobian).detach()
    for operator, expected in zip((HessianOperator(risk), GGNOperator(risk)), wanted, strict=True):
        torch.testing.assert_close(operator.to_dense(), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_nothing_is_asked_of_the_network_and_random_state_stays(folder, data, monkeypatch):
    asked, before = network_refused(monkeypatch), torch.get_rng_state()
    load_problem(folder, data=str(data))
    assert not asked and torch.equal(torch.get_rng_state(), before)


def test_the_digest_follows_the_base_model(folder, base):
    digest = read_checkpoint(folder).sha256
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    assert read_checkpoint(folder).sha256 != digest


def test_the_base_model_is_found_beside_the_adapter(folder, data):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    assert load_problem(folder, data=str(data)).risk.n == _RANK * (4 + 12)


@pytest.mark.parametrize("kept", ["lora_A", "lora_B"])
def test_an_adapter_that_lacks_a_factor_is_refused_in_one_sentence(folder, kept):
    from safetensors.torch import load_file, save_file

    tensors = {k: t for k, t in load_file(folder / "adapter_model.safetensors").items() if kept in k}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not fit its base model") as error:
        read_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_base_model_is_refused_in_one_sentence(folder, tmp_path):
    save(gpt2(n_embd=6), tmp_path / "base")
    with pytest.raises(InputError, match="does not fit its base model") as error:
        read_checkpoint(folder)
    assert "\n" not in str(error.value)
