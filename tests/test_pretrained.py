"""Folders of Hugging Face become risks: the right parameters, the right terms, and nothing from the network."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacrev

from pyhessian_spectra import GGNOperator, HessianOperator
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.problems import load_problem, read_checkpoint
from tests.commands import FAST, results
from tests.folders import LENGTHS, gpt2, network_refused, padded, save, seeded

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def folder(tmp_path):
    return save(gpt2(), tmp_path / "gpt2")


@pytest.fixture
def data(tmp_path):
    return padded(tmp_path)


def _reference(network, values=None):
    """Logits (p, V) and labels (p,) of all tokens that are predicted, one sequence after another and without padding.

    ``values`` replaces parameters; the network's weights are tied, so each is named once.
    """
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(1, 7, (len(LENGTHS), max(LENGTHS))))
    logits, labels = [], []
    for row, length in zip(ids, LENGTHS, strict=True):
        outputs = functional_call(network, values or {}, (row[None, :length],))
        logits.append(outputs.logits[0, :-1])
        labels.append(row[1:length])
    return torch.cat(logits), torch.cat(labels)


def _double(network):
    return copy.deepcopy(network).double().eval()


def _dense(risk, network, names):
    """Hessian and Gauss-Newton matrix of the mean over predicted tokens, by torch.func and the network's own class."""
    parameters = dict(network.named_parameters())
    theta = torch.cat([parameters[name].detach().reshape(-1) for name in names])
    assert theta.numel() == risk.n

    def outputs(vector):
        parts = vector.split([parameters[name].numel() for name in names])
        return _reference(
            network, {name: part.view_as(parameters[name]) for name, part in zip(names, parts, strict=True)}
        )

    labels = outputs(theta)[1]
    loss = lambda logits: F.cross_entropy(logits, labels)  # noqa: E731
    jacobian = jacrev(lambda v: outputs(v)[0])(theta).flatten(0, 1)
    curvature = hessian(loss)(outputs(theta)[0]).reshape(len(jacobian), -1)
    # reverse over reverse: forward mode differentiates the backward pass of LayerNorm wrongly (torch 2.13)
    return jacrev(grad(lambda v: loss(outputs(v)[0])))(theta), jacobian.T @ curvature @ jacobian


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_risk_is_the_mean_over_all_predicted_tokens_however_they_are_padded_and_cut(folder, data, batch_size):
    risk = load_problem(folder, data=str(data), batch_size=batch_size, dtype="float64").risk
    with torch.no_grad():
        logits, labels = _reference(_double(gpt2()))
    assert len(labels) == sum(LENGTHS) - len(LENGTHS)
    assert sum(risk.sample.survey.weights) == len(labels)
    assert risk.loss() == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-12)


def test_the_risk_is_the_loss_that_transformers_computes_itself(folder, data):
    problem = load_problem(folder, data=str(data), dtype="float64")
    arrays = {key: torch.from_numpy(array) for key, array in np.load(data).items()}
    labels = arrays["input_ids"].masked_fill(~arrays["attention_mask"], -100)
    with torch.no_grad():
        own = _double(gpt2())(arrays["input_ids"], attention_mask=arrays["attention_mask"].long(), labels=labels)
    assert problem.risk.loss() == pytest.approx(float(own.loss), rel=1e-6)  # its loss is taken in float32
    assert problem.description["loss"] == "cross_entropy" and problem.description["model"] == "GPT2LMHeadModel"


def test_hessian_and_gauss_newton_matrix_are_those_of_the_predicted_tokens(folder, data):
    risk = load_problem(folder, data=str(data), batch_size=2, dtype="float64").risk
    wanted = _dense(risk, _double(gpt2(attn_implementation="eager")), risk.layout.names)
    for operator, expected in zip((HessianOperator(risk), GGNOperator(risk)), wanted, strict=True):
        torch.testing.assert_close(operator.to_dense(), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_labels_of_the_file_move_forward_and_those_that_are_ignored_do_not_count(folder, tmp_path):
    ids = np.array([[1, 2, 3, 4], [5, 6, 1, 2]], dtype=np.uint8)
    labels = np.array([[1, -100, 3, 4], [-100, -100, -100, 2]])
    np.savez(tmp_path / "some.npz", input_ids=ids, labels=labels)
    risk = load_problem(folder, data=str(tmp_path / "some.npz"), batch_size=1, dtype="float64").risk
    with torch.no_grad():
        scores = _double(gpt2())(torch.from_numpy(ids).long()).logits.log_softmax(-1)
    expected = -(scores[0, 1, 3] + scores[0, 2, 4] + scores[1, 2, 2]) / 3
    assert list(risk.sample.survey.weights) == [2, 1]
    assert risk.loss() == pytest.approx(float(expected), rel=1e-12)


def test_tied_weights_are_one_parameter_and_shards_one_model(folder, data, tmp_path):
    parts = save(gpt2(), tmp_path / "parts", max_shard_size=300)
    assert (parts / "model.safetensors.index.json").is_file()
    whole, sharded = (load_problem(path, data=str(data), dtype="float64") for path in (folder, parts))
    assert whole.risk.n == sum(p.numel() for p in gpt2().parameters())
    assert "lm_head.weight" in whole.risk.layout.aliases
    assert whole.risk.loss() == sharded.risk.loss()
    assert whole.description["sha256"] != sharded.description["sha256"]


def test_the_digest_follows_the_config_and_the_weights(folder):
    digest = read_checkpoint(folder).sha256
    assert read_checkpoint(folder).sha256 == digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    assert read_checkpoint(folder).sha256 != digest


def test_nothing_is_asked_of_the_network_and_random_state_and_settings_stay(folder, data, monkeypatch):
    asked = network_refused(monkeypatch)
    before, verbosity = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    load_problem(folder, data=str(data))
    assert not asked
    assert torch.equal(torch.get_rng_state(), before)
    assert transformers.utils.logging.get_verbosity() == verbosity


def test_half_precision_is_read_as_float32_without_rounding(tmp_path, data):
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=7,
        max_position_embeddings=8, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = seeded(lambda: transformers.LlamaForCausalLM(config)).bfloat16()
    checkpoint = read_checkpoint(save(model, tmp_path / "llama"))
    for name, value in model.state_dict().items():
        assert checkpoint.state_dict[name].dtype == torch.float32
        assert torch.equal(checkpoint.state_dict[name], value.float())
    risk = load_problem(tmp_path / "llama", data=str(data), batch_size=2).risk
    assert torch.isfinite(HessianOperator(risk) @ torch.ones(risk.n)).all()


def _bert(cls, **settings):
    config = transformers.BertConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, vocab_size=7,
        max_position_embeddings=6, **settings,
    )  # fmt: skip
    return seeded(lambda: cls(config).eval())


@pytest.mark.parametrize(
    ("num_labels", "labels"), [(3, np.array([0, 2, 1, 1, 0])), (1, np.array([0.5, -1.0, 2.0, 0.0, 1.0]))]
)
def test_a_classifier_of_sequences_has_the_loss_of_its_labels(tmp_path, data, num_labels, labels):
    model = _bert(transformers.BertForSequenceClassification, num_labels=num_labels)
    arrays = dict(np.load(data))
    np.savez(tmp_path / "labelled.npz", labels=labels, **arrays)
    path = save(model, tmp_path / "bert")
    risk = load_problem(path, data=str(tmp_path / "labelled.npz"), batch_size=2, dtype="float64").risk
    ids, mask = (torch.from_numpy(arrays[key]).long() for key in ("input_ids", "attention_mask"))
    with torch.no_grad():
        logits = _double(model)(ids, attention_mask=mask).logits
    targets = torch.from_numpy(labels)
    expected = F.cross_entropy(logits, targets) if num_labels > 1 else F.mse_loss(logits[:, 0], targets)
    assert risk.loss() == pytest.approx(float(expected), rel=1e-12)


def test_labels_of_a_masked_language_model_stay_where_they_are(tmp_path):
    model = _bert(transformers.BertForMaskedLM)
    np.savez(tmp_path / "masked.npz", input_ids=[[1, 2, 3, 4]], labels=[[-100, 5, -100, 6]])
    path = save(model, tmp_path / "bert")
    risk = load_problem(path, data=str(tmp_path / "masked.npz"), dtype="float64").risk
    with torch.no_grad():
        scores = _double(model)(torch.tensor([[1, 2, 3, 4]])).logits.log_softmax(-1)
    assert risk.loss() == pytest.approx(float(-(scores[0, 1, 5] + scores[0, 3, 6]) / 2), rel=1e-12)


def test_a_text_is_read_by_the_tokenizer_of_the_folder(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["?", "to", "be", "or", "not", "that", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("to be or not to be that is " * 5)  # 40 tokens, of which 36 are to train on
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 12, "epoch": 1.5, "log_history": []}))
    problem = load_problem(folder, data=str(tmp_path / "text.txt"), model_args={"block_size": 6}, batch_size=4)
    assert [len(targets) for _, targets in problem.risk.data] == [4, 2]
    inputs, targets = problem.risk.data[0]
    assert inputs["input_ids"][0].tolist() == [1, 2, 3, 4, 1, 2]
    assert targets[0].tolist() == [2, 3, 4, 1, 2, -100]
    assert problem.description["step"] == 12 and problem.description["epoch"] == 1.5
    assert "blocks of 6 tokens of text.txt" in problem.description["data_description"]


def test_a_pickle_of_tensors_is_read_and_one_of_code_needs_trust(folder, data, tmp_path):
    expected = load_problem(folder, data=str(data)).risk.loss()
    torch.save(gpt2().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_problem(folder, data=str(data)).risk.loss() == expected
    torch.save({"transformer.wte.weight": _Harmful(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError):  # what it built is no tensor
        read_checkpoint(folder, trust_pickle=True)
    assert (tmp_path / "ran").exists()


class _Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_names_that_published_checkpoints_have_are_known(folder, data):
    from safetensors.torch import load_file, save_file

    expected = load_problem(folder, data=str(data)).risk.loss()
    tensors = {key.removeprefix("transformer."): t for key, t in load_file(folder / "model.safetensors").items()}
    mask = torch.ones(6, 6).tril()[None, None]  # a buffer of GPT-2 as it was published
    save_file({**tensors, "h.0.attn.bias": mask}, folder / "model.safetensors", {"format": "pt"})
    problem = load_problem(folder, data=str(data))
    assert problem.risk.loss() == expected and "left_out" not in problem.description


def test_tensors_that_are_not_the_networks_are_told(tmp_path, data):
    from safetensors.torch import load_file, save_file

    path = save(gpt2(), tmp_path / "more")
    save_file({**load_file(path / "model.safetensors"), "stray": torch.ones(2)}, path / "model.safetensors")
    assert load_problem(path, data=str(data)).description["left_out"] == "stray"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("transformer.ln_f.weight"), "lacks 1 tensors"),
        (lambda t: t.update({"transformer.ln_f.weight": torch.ones(3)}), "cannot be read by transformers"),
        (lambda t: t["transformer.ln_f.weight"].fill_(torch.nan), "NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_sentence(folder, data, change, told):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises((InputError, NonFiniteError), match=told) as error:
        load_problem(folder, data=str(data))
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_in_one_sentence(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a complete safetensors file") as error:
        read_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    parts = save(gpt2(), tmp_path / "parts", max_shard_size=300)
    first = min(parts.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(InputError, match=f"names {first.name}, which is not there"):
        read_checkpoint(parts)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"input_ids": [[1, 7]]}, "token 7, outside the vocabulary"),
        ({"input_ids": [[1, 2]], "labels": [1]}, "no tokens for sequences"),
        ({"input_ids": [1, 2]}, "expected integers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask of shape"),
        ({"input_ids": [[1, 2]], "labels": [[1, 9]]}, "outside the 7 classes"),
        ({"images": [[1, 2]]}, "expected input_ids"),
        ({"input_ids": [[1] * 7]}, "cannot take inputs of shape"),
    ],
)
def test_sequences_that_do_not_fit_are_refused_in_one_sentence(folder, tmp_path, arrays, told):
    np.savez(tmp_path / "wrong.npz", **{key: np.array(value) for key, value in arrays.items()})
    with pytest.raises(InputError, match=told) as error:
        load_problem(folder, data=str(tmp_path / "wrong.npz"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"model": "gpt"}, "its config says which model"),
        ({"model_args": {"heads": 2}}, "heads = 2 is no setting"),
        ({"model_args": {"block_size": "long"}}, "expected block_size, a number"),
    ],
)
def test_what_the_config_says_is_no_option(folder, data, option, told):
    with pytest.raises(InputError, match=told):
        load_problem(folder, data=str(data), **option)


def test_an_architecture_without_labels_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    with pytest.raises(InputError, match="names the architecture 'GPT2Model'"):
        read_checkpoint(folder)


def test_a_folder_is_a_checkpoint_of_the_command_line(folder, data, tmp_path, cli):
    result = cli("report", folder, "--data", data, *FAST, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    problem = results(tmp_path / "out")["problem"]
    assert problem["model"] == "GPT2LMHeadModel" and problem["sha256"] == read_checkpoint(folder).sha256
