"""Small models of every framework, built offline with fixed weights, and their factorization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import nn

from compressor.checkpoint.format import LowRankConfig, LowRankLayer
from compressor.layers.kinds import LAYER_KINDS, kind_of
from compressor.layers.surgery import install_skeletons
from compressor.methods.decompose import decompose
from compressor.methods.separable import decompose_separable


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=40, num_labels=3, pad_token_id=0
    )
    return GPT2ForSequenceClassification(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    return ViTForImageClassification(config)


def timm_vit() -> nn.Module:
    import timm

    return timm.create_model("test_vit", img_size=32, num_classes=7)


def timm_efficientnet() -> nn.Module:
    import timm

    return timm.create_model("test_efficientnet", num_classes=7)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, stride=2, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.second(torch.relu(self.norm(self.first(images))))
        return self.head(torch.relu(features).mean((2, 3)))


class SpatialCnn(Cnn):
    forms: ClassVar[dict[str, str]] = {"first": "conv2d-spatial", "second": "conv2d-spatial"}


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "bert": (
        bert,
        ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"),
    ),
    "gpt2": (gpt2, ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj")),
    "vit": (vit, ("vit.layers.0.attention.q_proj", "vit.layers.1.mlp.fc1")),
    "timm-vit": (timm_vit, ("blocks.0.attn.qkv", "blocks.1.mlp.fc2")),
    "timm-efficientnet": (
        timm_efficientnet,
        ("blocks.1.0.conv_pwl", "blocks.1.0.conv_exp", "conv_head"),
    ),
    "cnn": (Cnn, ("first", "second")),
    "cnn-spatial": (SpatialCnn, ("first", "second")),
}
"""Builder, and the layers to factorize, by name."""


def build(name: str) -> nn.Module:
    """Return the model with fixed random weights and BatchNorm statistics, in eval mode."""
    torch.manual_seed(0)
    module = MODELS[name][0]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()


def factorize(module: nn.Module, names: Iterable[str], rank: int = 3) -> LowRankConfig:
    """Truncate the named layers by a plain SVD, in place, giving each a bias."""
    layers: dict[str, LowRankLayer] = {}
    factors = {}
    for name in names:
        dense = module.get_submodule(name)
        form = getattr(module, "forms", {}).get(name)
        kind = kind_of(dense) if form is None else LAYER_KINDS.get(form)
        assert kind is not None, name
        if form is None:
            up, down = decompose(kind.matrix(dense)).factors(rank)
        else:
            up, down = decompose_separable(kind.matrix(dense), dense.kernel_size[1]).factors(rank)
        bias = getattr(dense, "bias", None)
        bias = torch.zeros(len(up)) if bias is None else bias.detach().clone()
        factors[name] = (kind, up, down, bias)
        layers[name] = LowRankLayer(kind=kind.name, rank=rank, bias=True)
    install_skeletons(module, layers)
    for name, (kind, up, down, bias) in factors.items():
        kind.fill(module.get_submodule(name), up.float(), down.float(), bias)
    return LowRankConfig(layers=layers)
