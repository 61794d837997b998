"""`compressor.apply_` makes a dense model the saved one, in place, or leaves it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import compressor
from compressor.checkpoint.save import save_directory
from compressor.errors import CheckpointError, LayerError, ModelError
from compressor.forward import call, logits_of
from compressor.layers.lowrank import lowrank_layers
from compressor.models import describe
from tests.contract.small_models import MODELS, Cnn, build, factorize

NAMES = ("bert", "vit", "gpt2", "timm-vit", "cnn")


def inputs_for(name: str, module: nn.Module) -> object:
    return torch.ones(2, 3, 16, 16) if name == "cnn" else describe(module).example_inputs(2, 9)


def saved(name: str, directory: Path) -> nn.Module:
    module = build(name)
    model = describe(module)
    save_directory(model, directory, lowrank=factorize(module, MODELS[name][1]))
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_model_of_any_framework_becomes_the_saved_one(name: str, tmp_path: Path) -> None:
    small = saved(name, tmp_path / "out")
    torch.manual_seed(1)
    dense = MODELS[name][0]()
    assert compressor.apply_(dense, tmp_path / "out") is dense
    assert dense.training
    assert lowrank_layers(dense).keys() == set(MODELS[name][1])
    inputs = inputs_for(name, small)
    with torch.no_grad():
        assert torch.equal(logits_of(call(dense.eval(), inputs)), logits_of(call(small, inputs)))


def test_type_is_kept(tmp_path: Path) -> None:
    saved("cnn", tmp_path / "out")
    half = compressor.apply_(Cnn().bfloat16(), tmp_path / "out")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_model_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    saved("cnn", tmp_path / "out")
    for other, error in ((build("bert"), LayerError), (Cnn(), ModelError)):
        if isinstance(other, Cnn):
            other.head = nn.Linear(24, 6)
        before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
        with pytest.raises(error):
            compressor.apply_(other, tmp_path / "out")
        after = other.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_directory_without_a_block_is_refused(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="not saved by compressor"):
        compressor.apply_(build("bert"), tmp_path / "dense")
