"""Layers that write into a residual stream are found by what is added, whatever they are called."""

import pytest
import timm
import torch
from torch import nn

from compressor.methods.residuals import residual_sources
from tests import language

IDS = {"input_ids": torch.randint(6, 23, (2, 9), generator=torch.Generator().manual_seed(0))}


def linears(model):
    kinds = (nn.Linear,)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ == "Conv1D"
    ]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama",
            {
                "self_attn.o_proj": "input_layernorm",
                "mlp.down_proj": "post_attention_layernorm",
            },
        ),
        ("gpt2", {"attn.c_proj": "ln_1", "mlp.c_proj": "ln_2"}),
        (
            "bert",  # normalized after the sum
            {
                "attention.output.dense": "attention.self.value",
                "output.dense": "intermediate.dense",
            },
        ),
    ],
)
def test_each_block_has_its_two(family, expected):
    model = language.build(family).eval()
    prefix = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer"}
    found = residual_sources(model, linears(model), lambda: model(**IDS))
    assert found == {
        f"{prefix[family]}.{block}.{layer}": f"{prefix[family]}.{block}.{source}"
        for block in range(2)
        for layer, source in expected.items()
    }


def test_an_output_that_is_normalized_before_it_is_added_is_left_out():
    model = language.build("gemma2").eval()
    assert residual_sources(model, linears(model), lambda: model(**IDS)) == {}


def test_images_too():
    model = timm.create_model("test_vit").eval()
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = residual_sources(model, linears(model), lambda: model(x))
    assert {found[f"blocks.{i}.{n}"] for i in range(6) for n in ("attn.proj", "mlp.fc2")} == {
        f"blocks.{i}.norm{n}" for i in range(6) for n in (1, 2)
    }


class Twice(nn.Module):
    """A layer that is called twice, and a source that is called again after its layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.LayerNorm(4)

    def forward(self, x):
        h = x + self.one(self.norm(x))
        h = h + self.one(h)
        y = self.two(self.norm(h))
        self.norm(y)
        return self.last(h + y)


def test_what_is_called_again_is_left_out():
    model = Twice()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = residual_sources(model, ["one", "two"], lambda: model(x))
    assert "one" not in found  # called twice
    assert found["two"] == "norm"
