"""A saved timm directory is what timm's ``local-dir:`` reads, preprocessing and all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import compressor
from compressor.errors import UsageError
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.models import load_model
from compressor.settings import ModelSettings

KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8}
    model = timm.create_model(
        "test_vit", img_size=32, num_classes=7, pretrained_cfg_overlay=overlay
    ).eval()
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    out = tmp_path_factory.mktemp("timm") / "small"
    compressor.compress(model, batches, "layers=50%", method="svd", out=out)
    return out


def test_preprocessing_is_restored(directory: Path) -> None:
    data = resolve_model_data_config(compressor.load(directory))
    assert data["input_size"] == (3, 32, 32)
    assert tuple(data["mean"]) == (0.1, 0.2, 0.3)
    assert tuple(data["std"]) == (0.4, 0.5, 0.6)
    assert data["crop_pct"] == 0.8


def test_timm_itself_reads_architecture_and_preprocessing(directory: Path) -> None:
    dense = timm.create_model(f"local-dir:{directory}", pretrained=False)
    small = compressor.load(directory)
    assert dense.num_classes == small.num_classes == 7
    assert dense.patch_embed.img_size == (32, 32)
    ours, theirs = resolve_model_data_config(small), resolve_model_data_config(dense)
    assert {key: ours[key] for key in KEYS} == {key: theirs[key] for key in KEYS}
    compressor.apply_(dense, directory)
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dense.eval()(inputs), small(inputs))


def test_timm_alone_refuses_the_factors(directory: Path) -> None:
    with pytest.raises(RuntimeError, match=r"patch_embed\.proj weight shape"):
        timm.create_model(f"local-dir:{directory}", pretrained=True)


def test_a_dense_export_is_read_by_timm_alone(directory: Path, tmp_path: Path) -> None:
    compressor.export(directory, "dense", tmp_path / "dense")
    dense = timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True).eval()
    assert not any(isinstance(module, LOW_RANK_TYPES) for module in dense.modules())
    assert tuple(resolve_model_data_config(dense)["mean"]) == (0.1, 0.2, 0.3)
    assert "lowrank" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_a_factory_is_refused_as_none_is_needed(directory: Path) -> None:
    settings = ModelSettings(model=str(directory), factory="anything.py:build", device="cpu")
    with pytest.raises(UsageError, match="Leave it out"):
        load_model(settings)
