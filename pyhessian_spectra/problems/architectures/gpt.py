"""A small decoder-only transformer over bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.state_dicts import StateDict

# The number of heads leaves no trace in the shapes. Unless the user says it, heads have this size, as in GPT-2 and most
# models since; a width that is no multiple of it gets one head.
_HEAD_SIZE = 64


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a LayerNorm and beside a skip connection; x is (N, T, width)."""

    def __init__(self, width: int, heads: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self._heads = heads
        self.ln1 = nn.LayerNorm(width, bias=bias)
        qkv, proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": proj})
        self.ln2 = nn.LayerNorm(width, bias=bias)
        fc, proj = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.mlp = nn.Sequential(OrderedDict(fc=fc, gelu=nn.GELU(), proj=proj))

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        qkv = self.attn["qkv"](self.ln1(x)).view(size, length, 3, self._heads, width // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["proj"](mixed.transpose(1, 2).reshape(size, length, width))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """Embeddings, blocks, a last LayerNorm and the head, from tokens (N, T), int64, to logits (N, T, vocabulary).

    ``block_size`` is the length of the longest sequence, ``hidden`` the hidden width of the blocks' MLPs (default
    ``4 * width``). ``bias`` gives biases to linear layers and LayerNorms; with ``tied``, token embedding and head share
    their weight.

    Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 256,
        block_size: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 1,
        hidden: int | None = None,
        bias: bool = True,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"heads = {heads} must be positive and divide the width {width}")
        self.block_size = block_size
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(block_size, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden or 4 * width, bias) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width, bias=bias)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=0.02)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.wte(tokens) + self.wpe(positions))
        return self.lm_head(self.ln_f(x))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Every size, and whether embedding and head are equal, which is taken to mean tied."""
    embedding = state_dict["wte.weight"]
    head = state_dict.get("lm_head.weight", embedding)
    width = embedding.shape[1]
    return {
        "vocabulary": embedding.shape[0],
        "block_size": state_dict["wpe.weight"].shape[0],
        "width": width,
        "heads": width // _HEAD_SIZE if width % _HEAD_SIZE == 0 else 1,
        "layers": sum(key.endswith(".ln1.weight") for key in state_dict),
        "hidden": state_dict["blocks.0.mlp.fc.weight"].shape[0],
        "bias": "ln_f.bias" in state_dict,
        "tied": torch.equal(embedding, head),
    }
