from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.checkpoint.load import load, load_saved
from compressor.checkpoint.save import save_directory
from compressor.errors import CheckpointError, LayerError, ModelError, UsageError
from compressor.layers.lowrank import LowRankConv2d
from compressor.models import describe, load_model
from compressor.settings import ModelSettings
from tests.contract.small_models import MODELS, Cnn, build, factorize

FACTORY = f"{Path(__file__).parents[1] / 'contract' / 'small_models.py'}:Cnn"


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    module = build("cnn")
    model = describe(module)
    lowrank = factorize(module, MODELS["cnn"][1])
    save_directory(model, tmp_path / "cnn", lowrank=lowrank)
    return tmp_path / "cnn"


@pytest.mark.parametrize("model", [Cnn, FACTORY, Cnn()], ids=["function", "reference", "module"])
def test_plain_torch_takes_any_builder(model: object, cnn: Path) -> None:
    again = load(cnn, model=model)
    assert isinstance(again.first, LowRankConv2d)
    if isinstance(model, nn.Module):
        assert again is model


def test_plain_torch_without_builder_says_what_to_pass(cnn: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\(Cnn\).*--factory .*model=module"):
        load(cnn)
    with pytest.raises(CheckpointError, match="--factory"):
        load_model(ModelSettings(model=str(cnn), device="cpu"))
    model = load_model(
        ModelSettings(model=str(cnn), device="cpu", factory=FACTORY, input_size=(3, 16, 16))
    )
    assert model.num_classes == 5


def test_stored_factory_is_never_called(cnn: Path, tmp_path: Path) -> None:
    import json

    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\ndef net(): pass\n")
    config = json.loads((cnn / "config.json").read_text()) | {"factory": f"{trap}:net"}
    (cnn / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"trap\.py:net"):
        load(cnn)
    assert not (tmp_path / "sprung").exists()


def test_a_module_of_another_shape_is_refused(cnn: Path) -> None:
    with pytest.raises(LayerError, match="Layer first: the model has no such layer"):
        load(cnn, model=nn.Linear(3, 3))
    other = Cnn()
    other.head = nn.Linear(24, 6)
    with pytest.raises(ModelError, match=r"head\.weight is \[5, 24\].*expects \[6, 24\]"):
        load(cnn, model=other)


def test_model_applies_to_plain_torch_alone(tmp_path: Path) -> None:
    module = build("bert")
    model = describe(module)
    save_directory(model, tmp_path / "b", lowrank=factorize(module, MODELS["bert"][1]))
    with pytest.raises(UsageError, match="no saved plain torch module"):
        load(tmp_path / "b", model=module)


def test_dense_and_missing_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no directory"):
        load(tmp_path / "none")
    build("bert").save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="not saved by compressor"):
        load(tmp_path / "dense")


def test_damaged_weights_are_refused(cnn: Path) -> None:
    path = cnn / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="truncated"):
        load(cnn, model=Cnn)


def test_load_saved_takes_settings(cnn: Path) -> None:
    model = load_saved(cnn, ModelSettings(model=str(cnn), device="cpu", factory=FACTORY))
    assert set(model.storage_dtypes.values()) == {torch.float32}
    assert model.reference == str(cnn)
