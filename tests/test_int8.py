"""Low-rank layers take torchao's int8 quantization as the linear layers they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import compressor
from compressor.forward import call, logits_of
from compressor.layers.lowrank import LowRankLinear, lowrank_layers
from tests.contract.architectures import ARCHITECTURES, build

torchao = pytest.importorskip("torchao.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
@pytest.mark.parametrize("name", ["transformers-bert", "timm-vit"])
def test_both_factors_are_quantized_and_predictions_stay(config: str, name: str) -> None:
    entry = ARCHITECTURES[name]
    batches = [(entry.inputs(6), torch.arange(6) % 3)]
    small = compressor.compress(build(name), batches, "layers=50%", method="svd").model.eval()
    int8 = copy.deepcopy(small)
    compressor.quantize_(int8, getattr(torchao, config)())

    layers = {n: m for n, m in lowrank_layers(int8).items() if isinstance(m, LowRankLinear)}
    assert layers
    for layer in layers.values():
        for weight in (layer.weight, layer.down.weight):
            assert type(weight) is not nn.Parameter
            assert stored(weight) < 0.5 * weight.numel() * 4
    inputs = entry.inputs(5)
    with torch.no_grad():
        expected, found = (logits_of(call(model, inputs)) for model in (small, int8))
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def stored(weight: torch.Tensor) -> int:
    """Return the bytes of the plain tensors that a quantized weight is made of."""
    names, _ = weight.__tensor_flatten__()
    return sum(getattr(weight, n).numel() * getattr(weight, n).element_size() for n in names)
