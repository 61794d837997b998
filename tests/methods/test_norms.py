"""BatchNorm statistics moved as their inputs have moved, relative to the dense model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.forward import Forward
from compressor.layers.surgery import structural_copy
from compressor.methods.norms import (
    corrected_norms,
    has_batch_norms,
    norm_inputs,
    norm_statistics,
    with_norm_statistics,
)


class Cnn(nn.Module):
    """Two convolutions with a BatchNorm each; ``twice`` runs the second pair twice."""

    def __init__(self, twice=False):
        super().__init__()
        self.twice = twice
        self.first, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x)))
        x = self.norm2(self.second(x))
        if self.twice:
            x = self.norm2(self.second(torch.relu(x)))
        return x.mean((2, 3))


@pytest.fixture(params=[False, True], ids=["once", "twice"])
def models(request):
    """A dense model and one whose first convolution is another."""
    torch.manual_seed(0)
    dense = Cnn(request.param).double().eval()
    for norm in (dense.norm1, dense.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    compressed = structural_copy(dense)
    compressed.first = nn.Conv2d(3, 8, 3).double().eval()
    return dense, compressed


def batches_of(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64), None)
        for _ in range(count)
    ]


def moments_before(model, name, x):
    """Return mean and variance [c] of each call's input to a norm."""
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: found.append(
            (args[0].mean((0, 2, 3)), args[0].var((0, 2, 3), unbiased=False))
        )
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return found


def test_is_relative_to_the_dense_model(models):
    dense, compressed = models
    batches = batches_of(3)
    found = corrected_norms(
        compressed, norm_inputs(dense, batches, forward=Forward()), forward=Forward()
    )
    shifts, ratios = [], []
    for x, _ in batches:
        (mean0, var0), (mean1, var1) = (
            moments_before(model, "norm1", x)[0] for model in (dense, compressed)
        )
        shifts.append(mean1 - mean0)
        ratios.append((var1 / var0).log())
    expected = dense.norm1.running_mean + sum(shifts) / 3
    torch.testing.assert_close(found.norm1.running_mean, expected)
    expected = dense.norm1.running_var * (sum(ratios) / 3).exp()
    torch.testing.assert_close(found.norm1.running_var, expected)


def test_later_layers_see_the_correction_of_earlier_ones(models):
    dense, compressed = models
    batches = batches_of(1)
    found = corrected_norms(
        compressed, norm_inputs(dense, batches, forward=Forward()), forward=Forward()
    )
    once = structural_copy(found)
    once.norm2 = structural_copy(compressed.norm2)  # the first norm corrected, the second not
    if dense.twice:
        return  # what a norm's second call sees depends on its first correction
    (mean0, var0), (mean1, var1) = (
        moments_before(model, "norm2", batches[0][0])[0] for model in (dense, once)
    )
    torch.testing.assert_close(found.norm2.running_mean, dense.norm2.running_mean + mean1 - mean0)
    torch.testing.assert_close(found.norm2.running_var, dense.norm2.running_var * var1 / var0)


def test_identical_models_are_left_identical(models):
    dense, _ = models
    same = structural_copy(dense)
    found = corrected_norms(
        same, norm_inputs(dense, batches_of(3), forward=Forward()), forward=Forward()
    )
    for key, value in found.state_dict().items():
        assert torch.equal(value, dense.state_dict()[key]), key


@pytest.mark.parametrize("training", [False, True])
def test_neither_model_is_touched(models, training):
    dense, compressed = models
    for model in models:
        model.train(training)
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    found = corrected_norms(
        compressed, norm_inputs(dense, batches_of(2), forward=Forward()), forward=Forward()
    )
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert all(module.training == training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in found.modules())
    assert not found.training
    assert found.first.weight is compressed.first.weight
    assert not torch.equal(found.norm2.running_mean, compressed.norm2.running_mean)
    assert not found.norm1.running_mean.is_inference()


def test_a_scaled_and_shifted_convolution_is_taken_back():
    torch.manual_seed(0)
    dense = Cnn().double().eval()
    [(x, _)] = batches_of(1)
    for name in ("norm1", "norm2"):
        norm = dense.get_submodule(name)
        norm.running_mean, norm.running_var = moments_before(dense, name, x)[0]
    compressed = structural_copy(dense)
    compressed.first = nn.Conv2d(3, 8, 3).double()
    with torch.no_grad():
        compressed.first.weight.copy_(3 * dense.first.weight)
        compressed.first.bias.copy_(3 * dense.first.bias + 1)
        found = corrected_norms(
            compressed, norm_inputs(dense, [(x, None)], forward=Forward()), forward=Forward()
        )
        torch.testing.assert_close(found(x), dense(x), rtol=1e-3, atol=1e-3)
        assert (compressed(x) - dense(x)).abs().max() > 0.1


def test_only_norms_with_statistics_count():
    assert has_batch_norms(Cnn())
    assert not has_batch_norms(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    assert not has_batch_norms(nn.LayerNorm(3))


def test_statistics_that_were_corrected_can_be_put_into_the_model_again(models):
    dense, compressed = models
    x = batches_of(1)[0][0]
    corrected = corrected_norms(
        compressed, norm_inputs(dense, batches_of(2), forward=Forward()), forward=Forward()
    )
    before = compressed(x)
    again = with_norm_statistics(compressed, norm_statistics(corrected))
    assert torch.equal(again(x), corrected(x))
    assert not torch.equal(again(x), before)
    assert torch.equal(compressed(x), before)
