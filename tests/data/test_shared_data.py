"""The real data of this project, where it is at hand."""

import pytest
from torch import nn

from compressor.data import load_data
from compressor.models.source import ImageTransform, LoadedModel
from compressor.settings import DataSettings


@pytest.fixture
def minilm(shared):
    from transformers import AutoConfig, AutoTokenizer

    directory = shared / "models" / "minilm-reuters52"
    names = AutoConfig.from_pretrained(directory).id2label
    return LoadedModel(
        nn.Identity(),
        "transformers",
        str(directory),
        "text",
        class_names=tuple(names[index] for index in range(len(names))),
        num_classes=len(names),
        tokenizer=AutoTokenizer.from_pretrained(directory),
    )


def test_reuters(shared, minilm):
    settings = DataSettings(data=str(shared / "data" / "reuters52"), max_length=64)
    data = load_data(settings, minilm, seed=0)
    assert (len(data.calibration), len(data.selection), len(data.test)) == (1024, 512, 2568)
    assert len(data.class_names) == 52
    assert data.classes is None
    assert (data.calibration.labels.bincount(minlength=52) > 0).all()
    assert max(inputs["input_ids"].shape[1] for inputs, _ in data.test) == 64


def test_sst2(shared, minilm):
    model = LoadedModel(
        nn.Identity(),
        "transformers",
        "sentiment",
        "text",
        class_names=("NEGATIVE", "POSITIVE"),
        num_classes=2,
        tokenizer=minilm.tokenizer,
    )
    data = load_data(DataSettings(data=str(shared / "data" / "sst2"), limit=100), model, seed=0)
    assert (len(data.calibration), len(data.selection), len(data.test)) == (1024, 512, 100)
    assert data.class_names == ("NEGATIVE", "POSITIVE")


def test_tiny_imagenet(shared):
    transform = ImageTransform((3, 128, 128), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    model = LoadedModel(
        nn.Identity(), "timm", "lite0", "image", num_classes=1000, transform=transform
    )
    settings = DataSettings(
        data=str(shared / "data" / "tiny-imagenet-val"), limit=400, calibration=400
    )
    data = load_data(settings, model, seed=0)
    assert len(data.classes) == len(data.class_names) == 200
    assert data.class_names[0] == "n01443537"
    assert data.classes[0] == 1
    assert data.test.labels.bincount().tolist() == [2] * 200
    assert next(iter(data.calibration))[0].shape[1:] == (3, 128, 128)
