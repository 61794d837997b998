from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from compressor.errors import ModelError
from compressor.forward import call, logits_of
from compressor.models import LoadedModel, describe, load_model
from compressor.settings import ModelSettings


def load(reference: str, *, skeleton: bool = False, **options: object) -> LoadedModel:
    return load_model(ModelSettings(model=reference, device="cpu", **options), skeleton=skeleton)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = timm.create_model("test_efficientnet", num_classes=7)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_classes_come_from_the_checkpoint(checkpoint: Path) -> None:
    model = load("test_efficientnet", checkpoint=checkpoint)
    assert model.num_classes == 7
    assert model.class_names is None
    assert model.heads == ("classifier",)
    assert logits_of(call(model.module, model.example_inputs(2))).shape == (2, 7)
    skeleton = load("test_efficientnet", checkpoint=checkpoint, skeleton=True)
    assert skeleton.num_classes == 7
    assert all(p.is_meta for p in skeleton.module.parameters())


def test_weights_are_those_of_the_file(checkpoint: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_efficientnet", num_classes=7).state_dict()
    loaded = load("test_efficientnet", checkpoint=checkpoint).module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in original.items())


def test_foreign_names_are_paired_and_said_so(tmp_path: Path) -> None:
    module = timm.create_model("test_efficientnet", num_classes=7).half()
    foreign = {f"_x{index}": value for index, value in enumerate(module.state_dict().values())}
    torch.save(foreign, tmp_path / "foreign.pth")
    model = load("test_efficientnet", checkpoint=tmp_path / "foreign.pth")
    assert "paired by position" in model.notes[0]
    assert model.num_classes == 7
    assert model.storage_dtypes["classifier.weight"] == torch.float16
    assert torch.equal(model.module.classifier.weight, module.classifier.weight.float())


def test_another_architecture_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="another architecture"):
        load("test_vit", checkpoint=checkpoint)


def test_number_of_classes_that_contradicts_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="the checkpoint has 7 classes"):
        load("test_efficientnet", checkpoint=checkpoint, num_classes=9)


def test_resolution_that_the_checkpoint_has_not(tmp_path: Path) -> None:
    module = timm.create_model("test_vit", img_size=64, num_classes=4)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"pos_embed.*--input-size C,H,W"):
        load("test_vit", checkpoint=tmp_path / "w.safetensors")
    model = load("test_vit", checkpoint=tmp_path / "w.safetensors", input_size=(3, 64, 64))
    assert model.transform is not None
    assert model.transform.input_size == (3, 64, 64)
    assert model.architecture["model_args"] == {"img_size": [64, 64]} or model.architecture[
        "model_args"
    ] == {"img_size": (64, 64)}


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_local_directory_restores_arguments_and_labels(prefix: str, tmp_path: Path) -> None:
    module = timm.create_model("test_vit", img_size=32, num_classes=2)
    timm.models.save_for_hf(
        module,
        str(tmp_path),
        model_config={"label_names": ["cat", "dog"]},
        safe_serialization=True,
    )
    model = load(f"{prefix}{tmp_path}")
    assert model.class_names == ("cat", "dog")
    assert model.transform is not None
    assert model.transform.input_size == (3, 32, 32)
    assert torch.equal(model.module.head.weight, module.head.weight)


def test_describe_knows_the_real_input_size_and_keeps_other_arguments() -> None:
    model = describe(timm.create_model("test_vit", img_size=32, num_classes=7, depth=2))
    assert model.transform is not None
    assert model.transform.input_size == (3, 32, 32)
    assert model.architecture["model_args"]["depth"] == 2  # type: ignore[index]
    assert model.example_inputs(3).shape == (3, 3, 32, 32)


def test_imagenet_models_name_their_classes_by_synset() -> None:
    names = describe(timm.create_model("test_efficientnet")).class_names
    assert names is not None
    assert names[0] == "n01440764"
    assert len(names) == 1000


def test_input_channels_and_normalization_can_be_overridden(tmp_path: Path) -> None:
    module = timm.create_model("test_efficientnet", num_classes=4, in_chans=1)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    model = load(
        "test_efficientnet",
        checkpoint=tmp_path / "w.safetensors",
        input_size=(1, 48, 48),
        mean=(0.2,),
        std=(0.3,),
    )
    assert model.transform is not None
    assert (model.transform.mean, model.transform.std) == ((0.2,), (0.3,))
    assert logits_of(call(model.module, model.example_inputs(2))).shape == (2, 4)
