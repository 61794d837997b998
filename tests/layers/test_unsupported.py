"""Modules that no layer kind takes are left dense, each with its reason; the rest compresses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import compressor
from compressor.layers.search import find_candidates
from compressor.layers.unsupported import unsupported
from tests.contract.architectures import build

X = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """Calls ``inner`` between two linear layers that can be factorized."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(32, 32), inner, nn.Linear(32, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        if isinstance(self.inner, nn.ConvTranspose1d):
            x = self.inner(x.transpose(1, 2)).transpose(1, 2)
        elif isinstance(self.inner, nn.MultiheadAttention):
            x = self.inner(x, x, x)[0]
        elif isinstance(self.inner, nn.Bilinear):
            x = self.inner(x, x)
        else:
            x = self.inner(x)
        x = x[0] if isinstance(x, tuple) else x
        return self.after(x.mean(1))


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (nn.LSTM(32, 32, batch_first=True), "LSTM: its gates are stacked"),
        (nn.GRU(32, 32, batch_first=True), "GRU: its gates are stacked"),
        (nn.ConvTranspose1d(32, 32, 3), "ConvTranspose1d: transposed"),
        (nn.MultiheadAttention(32, 4, add_bias_kv=True), "MultiheadAttention: its parent reads"),
        (nn.Bilinear(32, 32, 32), "Bilinear: it multiplies two inputs"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_it_is_told_and_what_is_around_compresses(inner: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    model = Around(inner).eval()
    found = find_candidates(model, X)
    assert found.left_dense["inner"].startswith(reason)
    assert list(found.layers) == ["before"]
    labels = torch.arange(4) % 2
    small = compressor.compress(
        model, [(X, labels)] * 2, "layers=50%", selection=[(X, labels)], gradients=False
    ).model
    assert small(X).shape == (4, 20)
    assert small.before.weight.shape[1] <= 8


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 4, 3), nn.Conv3d(4, 4, 3)])
def test_convolutions_of_other_dimensions_are_told(layer: nn.Module) -> None:
    assert type(layer).__name__ in unsupported(nn.Sequential(layer))["0"]


def test_fast_path_of_an_encoder_layer_is_respected() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
    model = nn.Sequential(encoder, nn.Flatten(1), nn.Linear(192, 20)).eval()
    found = find_candidates(model, X)  # as it stands, its fused path calls none of its layers
    assert not found.layers or not any("self_attn" in name for name in found.layers)
    left = {name for name in found.left_dense if name.startswith("0.")}
    assert left == {"0.self_attn", "0.self_attn.out_proj", "0.linear1", "0.linear2"}


def test_routers_are_told() -> None:
    found = unsupported(build("transformers-mixtral"))
    assert found["model.layers.0.mlp.gate"] == "MixtralTopKRouter computes its own forward"


def test_experts_that_are_not_marked_are_told() -> None:
    experts = nn.Module()
    experts.gate_up_proj = nn.Parameter(torch.randn(3, 96, 32))
    reason = unsupported(nn.Sequential(experts))["0"]
    assert reason == "gate_up_proj is one 3-D parameter for all of 3 experts"


def test_lookups_norms_tables_and_tokens_are_not_listed() -> None:
    assert unsupported(build("transformers-bert")) == {}
    assert unsupported(build("transformers-vit")) == {}
    assert unsupported(build("timm-swin")) == {}


def test_a_factorized_layer_is_no_foreign_one() -> None:
    small = compressor.compress(
        nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 20)),
        [(X[:, 0], torch.arange(4) % 2)],
        "layers=50%",
        method="svd",
    ).model
    assert unsupported(small) == {}
