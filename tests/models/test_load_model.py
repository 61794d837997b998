"""Every way of naming a model wrongly is answered with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import CheckpointError, CompressorError, ModelError, UsageError
from compressor.models import describe, load_model, resolve_device
from compressor.settings import ModelSettings
from tests.contract.small_models import Cnn, build


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    module = build("bert")
    module.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def load(reference: str | Path, **options: object) -> object:
    return load_model(ModelSettings(model=str(reference), device="cpu", **options))


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(directory: Path, key: str, tensor: torch.Tensor | None) -> None:
    state = load_file(directory / "model.safetensors")
    if tensor is None:
        del state[key]
    else:
        state[key] = tensor
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def test_nearest_architecture_is_named() -> None:
    with pytest.raises(ModelError, match=r"Did you mean 'test_efficientnet'\?"):
        load("test_eficientnet")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path)


def test_config_that_is_no_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(directory)


def test_config_of_no_known_framework(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    with pytest.raises(CompressorError, match="No model"):
        load(directory)


def test_weights_file_named_as_model(directory: Path) -> None:
    with pytest.raises(ModelError, match="--checkpoint"):
        load(directory / "model.safetensors")


def test_directory_without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(directory)


def test_truncated_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or truncated"):
        load(directory)


def test_nan_names_the_tensor(directory: Path) -> None:
    rewrite(directory, "classifier.weight", torch.full((3, 32), float("nan")))
    with pytest.raises(ModelError, match=r"classifier\.weight holds 96 NaN"):
        load(directory)


def test_missing_head_is_not_made_up(directory: Path) -> None:
    rewrite(directory, "classifier.weight", None)
    with pytest.raises(ModelError, match=r"lacks classifier\.weight"):
        load(directory)


def test_wrong_number_of_classes(directory: Path) -> None:
    with pytest.raises(ModelError, match="3 classes, but --num-classes says 4"):
        load(directory, num_classes=4)
    rewrite(directory, "classifier.weight", torch.zeros(5, 32))
    with pytest.raises(ModelError, match=r"classifier\.weight is \[5, 32\].*expects \[3, 32\]"):
        load(directory)


def test_already_quantized(directory: Path) -> None:
    edit(directory, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ModelError, match=r"bitsandbytes.*already quantized.*original checkpoint"):
        load(directory)


def test_integer_weights_count_as_quantized(directory: Path) -> None:
    rewrite(directory, "bert.pooler.dense.weight", torch.zeros(32, 32, dtype=torch.int8))
    with pytest.raises(ModelError, match="already quantized"):
        load(directory)


def test_base_model_without_head(directory: Path) -> None:
    edit(directory, architectures=["BertModel"])
    with pytest.raises(ModelError, match=r"BertModel; expected a sequence or image classifier"):
        load(directory)


def test_newer_format_is_refused_with_advice(directory: Path) -> None:
    edit(directory, quantization_config={"quant_method": "lowrank", "format_version": 99})
    with pytest.raises(CheckpointError, match=r"format_version 99.*pip install --upgrade"):
        load(directory)


def test_unavailable_device() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no cuda device"):
            resolve_device("cuda")


def test_describe_picks_the_framework_and_changes_nothing() -> None:
    for module, framework in (
        (build("bert").train(), "transformers"),
        (build("timm-vit").half(), "timm"),
        (Cnn().train(), "torch"),
    ):
        training, dtype = module.training, next(module.parameters()).dtype
        described = describe(module)
        assert described.framework == framework
        assert described.module is module
        assert module.training == training
        assert next(module.parameters()).dtype == dtype
        assert set(described.storage_dtypes.values()) == {dtype}


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_factory_that_would_not_be_called_is_refused(kind: str, directory: Path) -> None:
    reference = directory if kind == "transformers" else "test_efficientnet"
    with pytest.raises(UsageError, match=r"--factory rebuilds a plain torch model .* is none"):
        load(reference, factory="anything.py:build")
