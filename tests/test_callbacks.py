"""A tracker within Lightning, Hugging Face's Trainer and TensorBoard, where these are installed."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.tracking import (
    Measured,
    Record,
    SpectrumTracker,
    lightning_callback,
    to_tensorboard,
    to_wandb,
    transformers_callback,
)

LIGHTNING = next((name for name in ("lightning", "pytorch_lightning") if importlib.util.find_spec(name)), None)
X, Y = torch.randn(48, 4, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3


def _tracker(model, **how):
    return SpectrumTracker(model, nn.CrossEntropyLoss(), (X, Y), every=2, budget=None, **how)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(LIGHTNING is None, reason="Lightning is not installed")
def test_lightning_takes_a_step_of_the_tracker_for_each_step_of_its_optimiser_and_saves_its_state(tmp_path):
    pl = importlib.import_module("lightning.pytorch" if LIGHTNING == "lightning" else LIGHTNING)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        module = Module()
        tracker = _tracker(module)
        trainer = pl.Trainer(
            max_epochs=epochs, accumulate_grad_batches=2, callbacks=[lightning_callback(tracker)], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        loader = torch.utils.data.DataLoader([*zip(X, Y, strict=True)], 6)
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer, tracker

    trainer, tracker = fit(2)
    assert tracker.num_steps == trainer.global_step == 8
    assert [record.step for record in tracker.track.records] == [2, 4, 6, 8]
    assert tracker.track.records[0].threshold == pytest.approx(20.0)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    _, resumed = fit(3, tmp_path / "x.ckpt")
    assert [record.step for record in resumed.track.records] == [10, 12]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
def test_the_trainer_of_hugging_face_takes_a_step_of_the_tracker_for_each_of_its_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x, labels=None):
            logits = self.net(x)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits} if labels is not None else logits

    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    def train(steps, path, resume=None):
        torch.manual_seed(0)
        net = Net()
        tracker = _tracker(net, path=path)
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=6, save_steps=4, report_to=[],
            use_cpu=True, disable_tqdm=True, optim="adamw_torch",
        )  # fmt: skip
        trainer = transformers.Trainer(net, args, train_dataset=data, callbacks=[transformers_callback(tracker)])
        trainer.train(resume_from_checkpoint=resume)
        return tracker

    tracker = train(6, tmp_path / "track.jsonl")
    assert [record.step for record in tracker.track.records] == [2, 4, 6]
    assert tracker.track.records[0].threshold > 0
    resumed = train(8, tmp_path / "track.jsonl", str(tmp_path / "checkpoint-4"))
    assert [record.step for record in resumed.track.records] == [2, 4, 6, 8]


VALUES = (
    Measured("lambda_1", 3.0, 0.1, ""),
    Measured("trace", 5.0, None, "", "fc1"),
    Measured("x", 1.0, 0.0, "", converged=False),
)
RECORD = Record(20, VALUES, 4.0)
SCALARS = {
    "spectrum/lambda_1": 3.0,
    "spectrum/lambda_1/error": 0.1,
    "spectrum/trace/fc1": 5.0,
    "spectrum/edge of stability": 4.0,
}


def test_each_number_that_converged_is_a_scalar_of_tensorboard_and_of_weights_and_biases():
    written, logged = {}, []
    writer = SimpleNamespace(add_scalar=lambda name, value, step: written.update({name: (value, step)}))
    to_tensorboard(writer)(RECORD)
    to_wandb(SimpleNamespace(log=logged.append))(RECORD)
    assert written == {name: (value, 20) for name, value in SCALARS.items()}
    assert logged == [{**SCALARS, "spectrum/step": 20}]


def test_a_log_that_fails_is_told_of_once_and_does_not_end_the_tracking():
    def fail(record):
        raise OSError("no connection")

    tracker = _tracker(nn.Linear(4, 3), on_record=fail)
    tracker.step()
    with pytest.warns(RuntimeWarning, match="no connection"):
        tracker.step()
    for _ in range(4):
        tracker.step()
    assert len(tracker.track.records) == 3


@pytest.mark.parametrize(("make", "names"), [
    (lightning_callback, ["lightning.pytorch", "pytorch_lightning"]), (transformers_callback, ["transformers"])
])  # fmt: skip
def test_a_package_that_is_missing_is_named(monkeypatch, make, names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="not installed; run pip install"):
        make(_tracker(nn.Linear(4, 3)))
