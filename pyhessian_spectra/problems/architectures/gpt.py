"""A small decoder-only transformer over bytes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures.base import StateDict

# Head size where nothing else is said: that of GPT-2 and of most models since.
_HEAD_SIZE = 64


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same shape."""
        size, length, width = x.shape
        q, k, v = self.qkv(x).view(size, length, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).reshape(size, length, width))


class MLP(nn.Module):
    """The two linear layers of a transformer block."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(width, hidden, bias=bias)
        self.proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same shape."""
        return self.proj(F.gelu(self.fc(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a skip connection."""

    def __init__(self, width: int, heads: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, bias=bias)
        self.attn = Attention(width, heads, bias)
        self.ln2 = nn.LayerNorm(width, bias=bias)
        self.mlp = MLP(width, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same shape."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, a last LayerNorm and the head.

    Parameters
    ----------
    vocabulary : int
        256 for bytes.
    block_size : int
        Longest sequence.
    width, layers : int
    heads : int
        The shapes do not tell it.
    hidden : int, optional
        Hidden width of the blocks' MLP; default ``4 * width``.
    bias : bool
        Biases in linear layers and LayerNorms.
    tied : bool
        Token embedding and head share their weight.

    References
    ----------
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
        self.blocks = nn.ModuleList(Block(width, heads, hidden or 4 * width, bias) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=bias)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=0.02)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (N, T, vocabulary), of tokens of shape (N, T), int64."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Every size; equal embedding and head weights are taken as tied.

    The number of heads leaves no trace in the shapes: it is taken to be ``width / 64``, or 1 where that is not whole.
    """
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
