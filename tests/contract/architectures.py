"""One small model of every architecture that is promised to work, built offline.

A line here is all that a new architecture needs: the contract suites take it from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.forward import Inputs

VOCABULARY = 96
LENGTH = 10
CLASSES = 3
END = 2
"""The token that ends a text."""


@dataclass(frozen=True)
class Architecture:
    """How a model is built and what it is called on.

    Args:
        build: Returns the model, with random weights.
        inputs: Returns the inputs of ``n`` samples.
        wrap: Makes a module with class logits [B, C] of it, where it has none of its own.
        unwrap: Returns the model inside that module.
        method: The registered method it is compressed by. Models that cannot be built small take
            one that looks at the weights alone.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    wrap: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)
    unwrap: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)
    method: str = "nc1"


class NextToken(nn.Module):
    """A language model as a classifier of the next token, logits [B, vocabulary]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.inner(**inputs).logits[:, -1]


def tokens(samples: int) -> Inputs:
    generator = torch.Generator().manual_seed(samples)
    ids = torch.randint(3, VOCABULARY, (samples, LENGTH), generator=generator)
    ids[:, -1] = END
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def token_pairs(samples: int) -> Inputs:
    given = tokens(samples)
    assert isinstance(given, dict)
    return {**given, "decoder_input_ids": given["input_ids"].flip(1)[:, :4]}


def images(size: int) -> Callable[[int], Inputs]:
    def make(samples: int) -> Inputs:
        return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(samples))

    return make


def hugging_face(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": CLASSES,
}
DECODER = {
    **ENCODER,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
}
VISION = {"image_size": 32, "num_labels": CLASSES}


def classifier(model: str, config: str, **settings: Any) -> Architecture:
    return Architecture(hugging_face(model, config, **settings), tokens)


def language_model(
    model: str, config: str, inputs: Callable[[int], Inputs] = tokens, **settings: Any
) -> Architecture:
    settings.pop("num_labels", None)
    return Architecture(
        hugging_face(model, config, **settings),
        inputs,
        wrap=NextToken,
        unwrap=lambda wrapped: wrapped.get_submodule("inner"),
    )


def vision(model: str, config: str, **settings: Any) -> Architecture:
    return Architecture(hugging_face(model, config, **{**VISION, **settings}), images(32))


def timm(name: str, size: int = 32, *, method: str = "nc1", **arguments: Any) -> Architecture:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **arguments)

    return Architecture(build, images(size), method=method)


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

TRANSFORMERS: dict[str, Architecture] = {
    "bert": classifier("BertForSequenceClassification", "BertConfig", **ENCODER),
    "distilbert": classifier(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=40,
        num_labels=CLASSES,
    ),
    "roberta": classifier("RobertaForSequenceClassification", "RobertaConfig", **ENCODER),
    "deberta-v2": classifier(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        **ENCODER,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    ),
    "albert": classifier(
        "AlbertForSequenceClassification", "AlbertConfig", **ENCODER, embedding_size=24
    ),
    "vit": vision(
        "ViTForImageClassification",
        "ViTConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=8,
    ),
    "swin": vision(
        "SwinForImageClassification",
        "SwinConfig",
        embed_dim=24,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
        patch_size=4,
    ),
    "convnext": vision(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        hidden_sizes=[24, 32],
        depths=[1, 1],
        num_stages=2,
    ),
    "resnet": vision(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=16,
        hidden_sizes=[32, 48],
        depths=[1, 1],
        layer_type="bottleneck",
    ),
    "t5": language_model("T5ForConditionalGeneration", "T5Config", token_pairs, **T5),
    "t5-classifier": classifier(
        "T5ForSequenceClassification", "T5Config", **T5, num_labels=CLASSES, eos_token_id=END
    ),
    "gpt2": language_model(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=END,
    ),
    "llama": language_model("LlamaForCausalLM", "LlamaConfig", **DECODER),
    "llama-classifier": classifier("LlamaForSequenceClassification", "LlamaConfig", **DECODER),
    "qwen3": language_model("Qwen3ForCausalLM", "Qwen3Config", **DECODER, tie_word_embeddings=True),
    "mixtral": language_model(
        "MixtralForCausalLM",
        "MixtralConfig",
        **DECODER,
        num_local_experts=3,
        num_experts_per_tok=2,
    ),
    "qwen2-moe": language_model(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **DECODER,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "gpt-oss": language_model(
        "GptOssForCausalLM",
        "GptOssConfig",
        **DECODER,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["full_attention", "full_attention"],
    ),
}

TIMM: dict[str, Architecture] = {
    "vit": timm("test_vit", img_size=32),
    "deit": timm(
        "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3
    ),
    "swin": timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=24,
        depths=(1, 1),
        num_heads=(2, 4),
        window_size=4,
    ),
    "swinv2": timm(
        "swinv2_tiny_window8_256",
        img_size=32,
        embed_dim=24,
        depths=(1, 1),
        num_heads=(2, 4),
        window_size=4,
    ),
    "convnext": timm("test_convnext"),
    "resnet": timm("test_resnet"),
    "resnext": timm(
        "resnext50_32x4d",
        layers=(1, 1, 1, 1),
        channels=(32, 32, 48, 48),
        cardinality=4,
        base_width=8,
    ),
    "resnext-wide": timm(
        "resnext50_32x4d",
        method="svd",
        layers=(1, 1, 1, 1),
        channels=(32, 32, 48, 48),
        cardinality=2,
        base_width=64,
    ),
    "efficientnet": timm("test_efficientnet"),
    "mobilenetv4": timm("mobilenetv4_conv_small_035"),
    "eva": timm("eva02_tiny_patch14_224", 28, img_size=28, embed_dim=48, depth=2, num_heads=3),
    "beit": timm("beit_base_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3),
    "mixer": timm("mixer_s32_224", 64, method="svd", img_size=64),
    "regnet": timm("regnetx_002", depth=4, w0=16, wa=10.0, wm=1.4),
    "vgg": timm("vgg11", method="svd", mlp_ratio=0.02),
    "densenet": timm("densenet121", growth_rate=16, block_config=(2, 2)),
}

ARCHITECTURES: dict[str, Architecture] = {
    **{f"transformers-{name}": entry for name, entry in TRANSFORMERS.items()},
    **{f"timm-{name}": entry for name, entry in TIMM.items()},
}
"""Every architecture by its library and name."""


def build(name: str) -> nn.Module:
    """Return the model with fixed random weights and BatchNorm statistics, in eval mode."""
    torch.manual_seed(0)
    module = ARCHITECTURES[name].build()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()
