"""A tracker in other people's training loops and logs. Their packages are imported when they are asked for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.tracking.track import Measured, Record
from pyhessian_spectra.tracking.tracker import SpectrumTracker

#: The tracker's state has this name within a checkpoint of Hugging Face's Trainer.
STATE_FILE = "spectrum_tracker.pt"


def lightning_callback(tracker: SpectrumTracker) -> Any:
    """A Lightning callback that takes ``tracker.step`` after each optimiser step.

    Its state is saved in Lightning's checkpoints, and taken up with them. With several optimisers the first one's edge
    of stability is drawn. Raises InputError where Lightning is not installed.
    """
    module = _installed(("lightning.pytorch", "pytorch_lightning"), "lightning")

    class SpectrumCallback(module.Callback):  # type: ignore[name-defined]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._seen = trainer.global_step

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any
        ) -> None:
            if trainer.global_step != self._seen:  # not while gradients are accumulated
                self._seen = trainer.global_step
                loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else None
                tracker.step(_plain(trainer.optimizers[0]), loss=loss)

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            tracker.load_state_dict(state_dict)

    return SpectrumCallback()


def transformers_callback(tracker: SpectrumTracker) -> Any:
    """A Hugging Face ``TrainerCallback`` that takes ``tracker.step`` after each optimiser step.

    Its state is saved beside the Trainer's checkpoints as ``spectrum_tracker.pt``, and taken up from there where the
    Trainer resumes. Raises InputError where ``transformers`` is not installed.
    """
    module = _installed(("transformers",), "transformers")

    class SpectrumCallback(module.TrainerCallback):  # type: ignore[name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step > tracker.num_steps:
                path = _folder(args, state) / STATE_FILE
                if not path.exists():
                    raise InputError(f"there is no {path} to take the tracker up from; begin without its file")
                tracker.load_state_dict(torch.load(path))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.step(_plain(kwargs.get("optimizer")))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.save(tracker.state_dict(), _folder(args, state) / STATE_FILE)

    return SpectrumCallback()


def to_tensorboard(writer: Any) -> Callable[[Record], None]:
    """What a tracker's ``on_record`` calls to write each number as a scalar of a TensorBoard ``SummaryWriter``."""

    def write(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.step)

    return write


def to_wandb(run: Any) -> Callable[[Record], None]:
    """What a tracker's ``on_record`` calls to log each number to a Weights & Biases run, and the step among them."""

    def write(record: Record) -> None:
        run.log({**scalars(record), "spectrum/step": record.step})

    return write


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by names such as ``spectrum/lambda_1``; errors are ``spectrum/lambda_1/error``."""
    found = {}
    for each in record.values:
        if each.converged and math.isfinite(each.value):
            found[_name(each)] = each.value
            if each.error is not None:
                found[f"{_name(each)}/error"] = each.error
    if record.threshold is not None:
        found["spectrum/edge of stability"] = record.threshold
    return found


def _name(each: Measured) -> str:
    return "/".join(filter(None, ("spectrum", each.quantity, each.block)))


def _plain(optimizer: Any) -> Any:
    """The optimiser within the wrapper of Lightning or Accelerate."""
    return getattr(optimizer, "optimizer", optimizer)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _installed(names: tuple[str, ...], package: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise InputError(f"{package} is not installed; run pip install {package}")
