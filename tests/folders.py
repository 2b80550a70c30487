"""Folders as ``save_pretrained`` of transformers writes them, of networks small enough for dense matrices."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path

import numpy as np
import torch

# Sequences of uneven length: what the mask leaves out of each is filled up with token 0.
LENGTHS = (6, 2, 5, 3, 4)


def seeded(make):
    """What ``make`` draws at random, always the same and without a warning."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return make()


def gpt2(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_embd": 4, "n_head": 2, "n_inner": 4, "vocab_size": 7, "n_positions": 6}
    others = {"bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.5}
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(**{**sizes, **others, **settings})).eval())


def save(model, folder: Path, **options) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return folder


def padded(folder: Path) -> Path:
    """An .npz file of padded sequences without labels."""
    ids = np.random.default_rng(0).integers(1, 7, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    np.savez(folder / "padded.npz", input_ids=ids * mask, attention_mask=mask)
    return folder / "padded.npz"


def network_refused(monkeypatch) -> list:
    """Nothing reaches the network any more; what is asked of it goes into this list."""
    asked = []

    def refuse(*given, **options):
        asked.append(given)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return asked
