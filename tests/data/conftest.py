import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from compressor.models.source import ImageTransform, LoadedModel

WORDS = ("good", "bad", "fine", "film", "null", "NA", "a", "the", "007")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Keep the tables that `datasets` caches out of the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


@pytest.fixture
def text_model(tokenizer):
    def make(names=("neg", "pos"), **changes):
        known = {"class_names": names, "num_classes": len(names), "tokenizer": tokenizer}
        return LoadedModel(nn.Identity(), "transformers", "model", "text", **(known | changes))

    return make


@pytest.fixture
def image_model():
    def make(names=("cat", "dog"), size=(3, 16, 16), **changes):
        transform = ImageTransform(size, (0.5,) * size[0], (0.25,) * size[0])
        known = {
            "class_names": names,
            "num_classes": len(names) if names else None,
            "transform": transform,
        }
        return LoadedModel(nn.Identity(), "timm", "model", "image", **(known | changes))

    return make


@pytest.fixture
def write_table(tmp_path):
    def write(name, rows, header=("text", "label"), delimiter=","):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def write_images(tmp_path):
    def write(name, classes=("cat", "dog"), count=10, size=(20, 18)):
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for label in classes:
            (root / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / label / f"{index}.png")
        return root

    return write


class Listener:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.notes = []

    def track(self, items, *, description, total):
        yield from items

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def shared():
    path = Path(__file__).parents[2].parent / "shared"
    if not path.is_dir():
        pytest.skip("the shared data is not on this machine")
    return path
