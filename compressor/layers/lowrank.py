"""The modules that a factorized layer becomes: plain torch, two thin products instead of one.

The factor that makes the output keeps the dense layer's parameter name (``weight``) with another
shape, and the other factor is the submodule ``down``. A checkpoint loaded without this package
therefore fails on a size mismatch instead of starting from random weights.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRankLinear(nn.Linear):
    """``y = weight · (down · x) + bias``.

    Args:
        in_features: Width n of the input.
        out_features: Width m of the output.
        rank: Width r between the factors; ``weight`` is [m, r], ``down.weight`` is [r, n].
        bias: Whether there is a bias [m].
        device: Where the parameters lie.
        dtype: Their type.
    """

    kind = "linear"
    """Registered kind of the dense layer that this one replaced."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(rank, out_features, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.in_features = in_features
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., n] to [..., m]."""
        return functional.linear(self.down(input), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


class LowRankEmbedding(nn.Embedding):
    """``y = up · weight[index]``: rows of length r are looked up, then widened to D.

    The table keeps the dense layer's parameter name, as the part that an output layer may share.

    Args:
        num_embeddings: Rows V of the table.
        embedding_dim: Width D of the output.
        rank: Width r of the table; ``weight`` is [V, r], ``up.weight`` is [D, r].
        padding_idx: As in nn.Embedding.
        device: Where the parameters lie.
        dtype: Their type.
    """

    kind = "embedding"
    """Registered kind of the dense layer that this one replaced."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        padding_idx: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, rank, padding_idx=padding_idx, device=device, dtype=dtype)
        self.up = nn.Linear(rank, embedding_dim, bias=False, device=device, dtype=dtype)
        self.embedding_dim = embedding_dim
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """Map indices [...] to [..., D]."""
        rows = functional.embedding(input, self.weight, self.padding_idx)
        return functional.linear(rows, self.up.weight)

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


class ChannelForm(nn.Module):
    """A convolution of the dense layer's kernel to r channels, then one of size 1 to the output's.

    Stride, padding and dilation stay with the first, the bias with the second (channel form;
    Zhang et al., arXiv 1505.06798). Comes before the convolution among a class's bases.

    Args:
        dense: The convolution that this one replaces; only its geometry is read.
        rank: Channels r between the two.
        bias: Whether there is a bias [m].
    """

    dense_type: ClassVar[Any]
    """Class of the dense convolution, and of the first factor."""

    in_channels: int
    out_channels: int

    def __init__(self, dense: nn.Conv1d | nn.Conv2d, rank: int, *, bias: bool) -> None:
        device, dtype = dense.weight.device, dense.weight.dtype
        super().__init__(rank, dense.out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.down = self.dense_type(
            dense.in_channels,
            rank,
            dense.kernel_size,
            stride=dense.stride,
            padding=dense.padding,
            dilation=dense.dilation,
            padding_mode=dense.padding_mode,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.in_channels = dense.in_channels
        self.rank = rank

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}"


class LowRankConv2d(ChannelForm, nn.Conv2d):
    """k×k to r channels, then 1×1: ``weight`` is [m, r, 1, 1], ``down.weight`` [r, c, kh, kw]."""

    kind = "conv2d"
    """Registered kind of the dense layer that this one replaced."""

    dense_type = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, c, H, W] to [B, m, H', W']."""
        return functional.conv2d(self.down(input), self.weight, self.bias)


class LowRankSpatialConv2d(nn.Conv2d):
    """kh×1 to r channels, then 1×kw: ``weight`` is [m, r, 1, kw], ``down.weight`` [r, c, kh, 1].

    Each convolution has stride, padding and dilation of its own axis, the second one the bias
    (spatial form, scheme 2 of Jaderberg et al., arXiv 1405.3866). Every padding mode pads the axes
    independently of each other, so that none is lost.

    Args:
        dense: The convolution that this one replaces; only its geometry is read.
        rank: Channels r between the two.
        bias: Whether there is a bias [m].
    """

    kind = "conv2d-spatial"
    """Registered kind of the dense layer that this one replaced."""

    dense_type = nn.Conv2d

    def __init__(self, dense: nn.Conv2d, rank: int, *, bias: bool) -> None:
        device, dtype = dense.weight.device, dense.weight.dtype
        (kh, kw), (sh, sw), (dh, dw) = dense.kernel_size, dense.stride, dense.dilation
        vertical, horizontal = _by_axis(dense.padding)
        super().__init__(
            rank,
            dense.out_channels,
            (1, kw),
            stride=(1, sw),
            padding=horizontal,
            dilation=(1, dw),
            padding_mode=dense.padding_mode,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.down = nn.Conv2d(
            dense.in_channels,
            rank,
            (kh, 1),
            stride=(sh, 1),
            padding=vertical,
            dilation=(dh, 1),
            padding_mode=dense.padding_mode,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.in_channels = dense.in_channels
        self.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, c, H, W] to [B, m, H', W']."""
        return super().forward(self.down(input))

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}"


def _by_axis(padding: Any) -> tuple[Any, Any]:
    """Return the padding of the vertical and of the horizontal axis alone."""
    return (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))


class LowRankConv1d(ChannelForm, nn.Conv1d):
    """Width k to r channels, then width 1: ``weight`` is [m, r, 1], ``down.weight`` [r, c, k]."""

    kind = "convolution1d"
    """Registered kind of the dense layer that this one replaced."""

    dense_type = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, c, L] to [B, m, L']."""
        return functional.conv1d(self.down(input), self.weight, self.bias)


LowRank: TypeAlias = (
    LowRankLinear | LowRankConv2d | LowRankSpatialConv2d | LowRankConv1d | LowRankEmbedding
)

LOW_RANK_TYPES = get_args(LowRank)


def lowrank_layers(model: nn.Module) -> dict[str, LowRank]:
    """Return the factorized layers of ``model`` by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, LOW_RANK_TYPES)}
