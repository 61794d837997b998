from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.errors import ModelError, UsageError
from compressor.forward import call, logits_of
from compressor.models import LoadedModel, load_model
from compressor.settings import ModelSettings

SOURCE = """
import torch
from torch import nn
from neighbour import WIDTH
from compressor.models import ImageTransform

def net():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(5)) \\
        if False else nn.Sequential(
            nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(WIDTH, 5))

def described():
    return net(), ImageTransform((3, 12, 12), (0.1,) * 3, (0.2,) * 3)

def mapped():
    return net(), {"input_size": [3, 12, 12], "mean": [0.1] * 3, "std": [0.2] * 3}

def called():
    return net(), lambda image: torch.zeros(3, 10, 14) + image.size[0]

def odd():
    return 3

def odd_transform():
    return net(), 3

def wrong_mapping():
    return net(), {"size": 3}

def fails():
    raise ValueError("no luck")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 8\n")
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path / "net.py"


def load(reference: str, *, skeleton: bool = False, **options: object) -> LoadedModel:
    return load_model(ModelSettings(model=reference, device="cpu", **options), skeleton=skeleton)


@pytest.mark.parametrize("factory", ["described", "mapped"])
def test_factory_with_transform(factory: str, file: Path) -> None:
    model = load(f"{file}:{factory}")
    assert model.framework == "torch"
    assert model.modality == "image"
    assert model.num_classes == 5
    assert model.transform is not None
    assert model.transform.input_size == (3, 12, 12)
    assert model.transform.mean == (0.1, 0.1, 0.1)
    assert logits_of(call(model.module, model.example_inputs(2))).shape == (2, 5)


def test_callable_transform_is_kept_and_its_size_asked(file: Path) -> None:
    transform = load(f"{file}:called").transform
    assert transform is not None
    assert transform.input_size == (3, 10, 14)
    assert transform.custom is not None


def test_options_tell_the_transform(file: Path) -> None:
    bare = load(f"{file}:net")
    assert bare.modality == "tensor"
    assert bare.transform is None
    with pytest.raises(ModelError, match="--input-size C,H,W"):
        bare.example_inputs()
    model = load(f"{file}:net", input_size=(3, 9, 9), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert model.transform is not None
    assert model.transform.std == (0.25, 0.25, 0.25)
    assert model.num_classes == 5


def test_checkpoint_is_loaded_strictly(file: Path, tmp_path: Path) -> None:
    module = load(f"{file}:net").module.half()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pth")
    model = load(f"{file}:described", checkpoint=tmp_path / "w.pth")
    assert torch.equal(model.module[0].weight, module[0].weight.float())
    assert set(model.storage_dtypes.values()) == {torch.float16}
    assert model.bytes_on_disk == (tmp_path / "w.pth").stat().st_size
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="another architecture"):
        load(f"{file}:net", checkpoint=tmp_path / "other.pt")


def test_wrong_references(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'described'\?"):
        load(f"{file}:describd")
    with pytest.raises(UsageError, match="there is no file"):
        load(f"{tmp_path / 'none.py'}:net")
    with pytest.raises(UsageError, match="names no function"):
        load(str(file))


def test_wrong_factories(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="returned int; expected a"):
        load(f"{file}:odd")
    with pytest.raises(ModelError, match="its transform is a int"):
        load(f"{file}:odd_transform")
    with pytest.raises(ModelError, match="does not describe one"):
        load(f"{file}:wrong_mapping")
    with pytest.raises(ModelError, match="fails failed: ValueError: no luck"):
        load(f"{file}:fails")
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    with pytest.raises(ModelError, match=r"Importing .*broken\.py failed"):
        load(f"{tmp_path / 'broken.py'}:net")


def test_number_of_classes_and_input_size_are_checked(file: Path) -> None:
    with pytest.raises(ModelError, match="makes 5 logits, but --num-classes says 6"):
        load(f"{file}:described", num_classes=6)
    with pytest.raises(ModelError, match=r"fails on an input of size \(1, 9, 9\)"):
        load(f"{file}:net", input_size=(1, 9, 9))
