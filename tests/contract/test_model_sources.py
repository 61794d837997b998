"""What every registered model source must do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.checkpoint.format import LowRankConfig, find_lowrank, read_config
from compressor.forward import call, logits_of
from compressor.models import MODEL_SOURCES, LoadedModel, ModelOptions, ModelSource
from tests.contract.small_models import MODELS, build, factorize

SAMPLES = {"transformers": "vit", "timm": "timm-efficientnet", "torch": "cnn"}
"""A small model of each source; a new source needs a line here."""

FACTORY = f"{Path(__file__).parent / 'small_models.py'}:Cnn"


def reference_of(name: str, module: nn.Module, directory: Path) -> tuple[str, ModelOptions]:
    """Write a dense checkpoint the framework's own way, and return what names it."""
    if name == "transformers":
        module.save_pretrained(directory)
        return str(directory), ModelOptions()
    if name == "timm":
        import timm

        timm.models.save_for_hf(module, str(directory), safe_serialization=True)
        return str(directory), ModelOptions()
    directory.mkdir(exist_ok=True)
    torch.save(module.state_dict(), directory / "w.pt")
    return FACTORY, ModelOptions(checkpoint=directory / "w.pt", input_size=(3, 16, 16))


@pytest.fixture(params=MODEL_SOURCES.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(name: str) -> ModelSource:
    return MODEL_SOURCES.get(name)


@pytest.fixture
def module(name: str) -> nn.Module:
    return build(SAMPLES[name])


@pytest.fixture
def loaded(name: str, source: ModelSource, module: nn.Module, tmp_path: Path) -> LoadedModel:
    reference, options = reference_of(name, module, tmp_path / "dense")
    assert source.recognises(reference, options)
    return source.load(reference, options)


def test_name_is_the_one_it_is_registered_under(name: str, source: ModelSource) -> None:
    assert source.name == name


def test_loaded_model_is_the_one_saved(loaded: LoadedModel, module: nn.Module, name: str) -> None:
    assert loaded.framework == name
    assert not loaded.module.training
    inputs = loaded.example_inputs(2)
    with torch.no_grad():
        logits = logits_of(call(loaded.module, inputs))
        assert torch.equal(logits, logits_of(call(module, inputs)))
    assert logits.shape == (2, loaded.num_classes)


def test_facts_about_the_checkpoint(loaded: LoadedModel) -> None:
    state = loaded.module.state_dict()
    floating = {key for key, tensor in state.items() if tensor.is_floating_point()}
    assert loaded.storage_dtypes.keys() == floating
    assert loaded.bytes_on_disk is not None
    assert loaded.bytes_on_disk > sum(state[key].numel() * 4 for key in floating)
    assert loaded.sha256 is not None
    assert len(loaded.sha256) == 64
    assert set(loaded.heads) <= {name for name, _ in loaded.module.named_modules()}


def test_skeleton_has_the_shapes(
    name: str, source: ModelSource, module: nn.Module, loaded: LoadedModel, tmp_path: Path
) -> None:
    reference, options = reference_of(name, module, tmp_path / "dense")
    skeleton = source.skeleton(reference, options)
    shapes = {key: tensor.shape for key, tensor in loaded.module.state_dict().items()}
    assert {key: t.shape for key, t in skeleton.module.state_dict().items()} == shapes
    assert skeleton.num_classes == loaded.num_classes


def test_does_not_recognise_other_sources(name: str, source: ModelSource, tmp_path: Path) -> None:
    for other in MODEL_SOURCES.names():
        if other != name:
            built = build(SAMPLES[other])
            reference, options = reference_of(other, built, tmp_path / other)
            assert not source.recognises(reference, options)


def test_describes_a_module_of_its_own(name: str, source: ModelSource, module: nn.Module) -> None:
    assert source.owns(module)
    described = source.describe(module)
    assert described.framework == name
    assert described.module is module


def test_writes_what_it_rebuilds(
    name: str, source: ModelSource, loaded: LoadedModel, tmp_path: Path
) -> None:
    lowrank: LowRankConfig = factorize(loaded.module, MODELS[SAMPLES[name]][1])
    out = tmp_path / "out"
    out.mkdir()
    source.write_weights(loaded, out, loaded.module.state_dict(), max_shard_size="5GB")
    source.write_architecture(loaded, out, lowrank.model_dump(mode="json"))
    config = read_config(out)
    block = find_lowrank(config, where="config.json")
    assert block is not None
    assert block.framework == name
    assert block.lowrank == lowrank
    json.dumps(config)
    again = source.rebuild(out, config, ModelOptions(factory=FACTORY))
    assert again.num_classes == loaded.num_classes
    assert again.transform == loaded.transform
    inputs = loaded.example_inputs(2)
    with torch.no_grad():
        assert torch.equal(
            logits_of(call(again.module, inputs)), logits_of(call(loaded.module, inputs))
        )
