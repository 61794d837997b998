"""Transformer encoders of any width, depth and number of classes, and data of classes for them.

Weights are drawn and not trained: what a run costs follows from shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.forward import Batch

HEAD_WIDTH = 32
EXPANSION = 4


@dataclass(frozen=True)
class Size:
    """What a network and its data are as large as.

    Args:
        width: Features of a token.
        depth: Blocks of attention and MLP.
        tokens: Tokens of a sample.
        classes: Classes, all of equal share.
        samples: Calibration samples; half as many are held out to choose by.
        batch: Samples a batch.
    """

    width: int = 256
    depth: int = 4
    tokens: int = 32
    classes: int = 10
    samples: int = 256
    batch: int = 32


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual path around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(width // HEAD_WIDTH, 1)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to the same."""
        queries, keys, values = (
            self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )  # (B, T, heads, head width) each
        met = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        )
        x = x + self.proj(met.transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.before_mlp(x))))


class Encoder(nn.Module):
    """Blocks over tokens [B, T, width], their mean, and a linear head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(size.width) for _ in range(size.depth)))
        self.head = nn.Linear(size.width, size.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.head(self.blocks(x).mean(1))
        return logits


def network(size: Size) -> Encoder:
    """Return an encoder in eval mode, the same one each time."""
    torch.manual_seed(0)
    return Encoder(size).eval()


def batches(size: Size, samples: int, seed: int) -> list[Batch]:
    """Return batches of tokens around the mean of their sample's class."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=draw) % size.classes
    made: list[Batch] = []
    for labels in order.split(size.batch):
        means = torch.stack([_mean(size.width, int(label)) for label in labels])
        noise = torch.randn(len(labels), size.tokens, size.width, generator=draw)
        made.append((means[:, None] + noise, labels))
    return made


def _mean(width: int, label: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(label))
