"""Copies that share tensors, and layers put in by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.errors import LayerError
from compressor.layers.lowrank import LowRankConv2d, LowRankLinear
from compressor.layers.surgery import BuildSpec, culprits, install, replace_module, structural_copy
from tests.contract.small_models import build


def test_copy_shares_every_tensor_but_no_module():
    model = build("cnn")
    copy = structural_copy(model)
    originals = dict(model.named_modules())
    assert all(module is not originals[name] for name, module in copy.named_modules())
    for (name, ours), theirs in zip(copy.named_parameters(), model.parameters(), strict=True):
        assert ours is theirs, name
    for (name, ours), theirs in zip(copy.named_buffers(), model.buffers(), strict=True):
        assert ours is theirs, name


def test_tied_weights_stay_tied_in_the_copy():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    copy = structural_copy(model)
    assert copy[1].weight is copy[0].weight is model[0].weight


def test_swapping_in_the_copy_leaves_the_dense_model():
    model = build("cnn")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copy = structural_copy(model)
    install(copy, {"first": BuildSpec("conv2d", 2, True), "second": BuildSpec("conv2d", 3, False)})
    with torch.no_grad():
        copy.first.weight.fill_(7)
    assert isinstance(copy.first, LowRankConv2d)
    assert type(model.first) is nn.Conv2d
    assert copy.norm.weight is model.norm.weight
    assert copy.second.bias is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_install_keeps_mode_device_and_type():
    model = nn.Sequential(nn.Linear(8, 6).double(), nn.Linear(6, 4, device="meta")).eval()
    install(model, {"0": BuildSpec("linear", 2, True), "1": BuildSpec("linear", 1, False)})
    first, second = model
    assert isinstance(first, LowRankLinear)
    assert not first.training
    assert not first.down.training
    assert first.weight.dtype == first.down.weight.dtype == torch.float64
    assert second.weight.is_meta
    assert second.down.weight.is_meta


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("frist", BuildSpec("conv2d", 2, True), "no such layer. Did you mean 'first'"),
        ("head", BuildSpec("conv2d", 2, True), "expected a dense layer of kind conv2d"),
        ("norm", BuildSpec("linear", 2, True), "kind linear, found BatchNorm2d"),
        ("head", BuildSpec("linear", 6, True), "rank 6 is not between 1 and 5"),
        ("head", BuildSpec("linear", 0, True), "rank 0 is not between 1 and 5"),
    ],
)
def test_what_does_not_fit_names_the_layer(name, spec, message):
    with pytest.raises(LayerError, match=message) as caught:
        install(build("cnn"), {name: spec})
    assert caught.value.layer == name


def test_installing_twice_is_refused():
    model = build("cnn")
    install(model, {"head": BuildSpec("linear", 2, True)})
    with pytest.raises(LayerError, match="found LowRankLinear"):
        install(model, {"head": BuildSpec("linear", 2, True)})


def test_replace_reaches_into_containers():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU()]))})
    replace_module(model, "a.1.0", new := nn.Tanh())
    assert model["a"][1][0] is new


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x @ self.inner.weight.T + 1


def test_culprits_are_the_innermost_parents_layers():
    model = nn.Sequential(nn.Linear(4, 4), Parent())
    swapped = ["0", "1.inner"]
    install(model, {name: BuildSpec("linear", 1, True) for name in swapped})
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(2, 4))
    assert culprits(model, caught.value, swapped) == ["1.inner"]
    assert culprits(model, ValueError("raised elsewhere"), swapped) == []
