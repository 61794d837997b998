import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.evaluation.flops import count_flops


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query = nn.Linear(width, width)

    def forward(self, tokens):
        query = self.query(tokens)[:, None]
        return functional.scaled_dot_product_attention(query, query, query)[:, 0]


def test_products_by_hand_and_by_module():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 3, bias=False)))
    total, modules = count_flops(model.eval(), torch.randn(5, 10))
    assert total == 2 * (10 * 20 + 20 * 3)
    assert modules["0"] == 400
    assert modules["2"] == modules["2.0"] == 120


@pytest.mark.parametrize("samples", [1, 4])
def test_convolutions_count_each_position(samples):
    model = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    total, _ = count_flops(model, torch.randn(samples, 3, 16, 16))
    assert total == 2 * 8 * 3 * 9 * 8 * 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_on_any_device(device):
    with torch.device(device):
        model, inputs = Attention(16), torch.zeros(2, 7, 16)
    total, modules = count_flops(model.eval(), inputs)
    assert modules["query"] == 2 * 7 * 16 * 16
    assert total == modules["query"] + 2 * (2 * 7 * 7 * 16)


def test_the_fast_path_of_encoder_layers_does_not_hide_them():
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True).eval()
    total, _ = count_flops(layer, torch.randn(1, 5, 16))
    products = 5 * 16 * 48 + 2 * 5 * 5 * 16 + 5 * 16 * 16 + 2 * 5 * 16 * 32
    assert total == 2 * products
    assert torch.backends.mha.get_fastpath_enabled()


def test_inputs_of_any_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, left, right):
            return self.linear(left + right)

    ones = torch.ones(3, 4)
    assert count_flops(Two(), (ones, ones))[0] == 16
    assert count_flops(Two(), {"left": ones, "right": ones})[0] == 16


def test_factors_cost_what_their_ranks_say():
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 64))
    assert count_flops(model, torch.randn(1, 64))[0] == 2 * 4 * (64 + 64)
