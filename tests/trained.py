"""Small trained checkpoints of every framework and data that fits them, written offline."""

from __future__ import annotations

import csv
import importlib.util
import io
import random
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).parents[1]
FACTORY = f"{ROOT / 'examples' / 'plain_cnn.py'}:build"
TOPICS = {
    "money": "bank loan tax price share cash debt fund",
    "sport": "goal team match coach win race ball score",
    "weather": "rain sun cloud wind storm snow cold warm",
}
FILLER = ("the", "a", "of", "and", "to", "in", "on", "is", "was", "it")
COLOURS = {"blue": 2, "green": 1, "red": 0}
"""Class folders in their sorted order, and the channel that is brighter in them."""


class Case(NamedTuple):
    """What a person would type: the model with its options, and the data with its own."""

    model: tuple[str, ...]
    data: tuple[str, ...]
    saved: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Return model and data as words of a command line."""
        return [*self.model, *self.data]


def text_case(root: Path) -> Case:
    """Write a BERT that tells topics apart, its tokenizer, and a directory of CSV files."""
    from transformers import BertConfig, BertForSequenceClassification

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *" ".join(TOPICS.values()).split()]
    tokenizer = _tokenizer(vocabulary)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            id2label=dict(enumerate(TOPICS)),
            label2id={name: index for index, name in enumerate(TOPICS)},
        )
    )
    rows = {"train": texts(240, seed=1), "test": texts(90, seed=2)}
    inputs = tokenizer([text for text, _ in rows["train"]], padding=True, return_tensors="pt")
    targets = torch.tensor([list(TOPICS).index(label) for _, label in rows["train"]])
    _fit(model, lambda rows: model(**{k: v[rows] for k, v in inputs.items()}).logits, targets)
    with redirect_stderr(io.StringIO()):  # it draws a progress bar
        model.save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    for split, content in rows.items():
        write_table(root / "texts" / f"{split}.csv", content)
    return Case((str(root / "bert"),), ("--data", str(root / "texts")))


def texts(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Return texts whose words lean to a topic, and the topics; some cannot be told."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        topic = list(TOPICS)[index % len(TOPICS)]
        told = TOPICS[topic].split() * 2 + " ".join(TOPICS.values()).split()
        words = rng.choices(FILLER, k=rng.randint(3, 8)) + rng.choices(told, k=rng.randint(1, 4))
        rng.shuffle(words)
        rows.append((" ".join(words), topic))
    return rows


def write_table(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> Path:
    """Write a CSV file with columns text and label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header or ("text", "label"), *rows])
    return path


def vit_case(root: Path) -> Case:
    """Write a checkpoint of timm's test_vit for 32×32 images in three classes, and the images."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    images, targets = pictures(150, seed=1)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    _fit(model, lambda rows: model(inputs[rows]), torch.tensor(targets), steps=10)
    save_file(model.state_dict(), root / "vit.safetensors")
    folders = write_images(root / "photos", *pictures(150, seed=2))
    model_words = ("test_vit", "--checkpoint", str(root / "vit.safetensors"), "--input-size", "32")
    return Case(model_words, ("--data", str(folders)))


def pictures(count: int, *, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return noise [N, 32, 32, 3] in which the class's channel is a little brighter."""
    rng = np.random.default_rng(seed)
    channels = list(COLOURS.values())
    classes = [index % len(COLOURS) for index in range(count)]
    noise = rng.normal(110, 60, (count, 32, 32, 3))
    for image, label in zip(noise, classes, strict=True):
        image[..., channels[label]] += rng.normal(10, 8)
    return noise.clip(0, 255).astype(np.uint8), classes


def write_images(root: Path, images: np.ndarray, classes: list[int]) -> Path:
    """Write images as PNG files in one folder a class."""
    for index, (pixels, label) in enumerate(zip(images, classes, strict=True)):
        folder = root / list(COLOURS)[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root


def cnn_case(root: Path) -> Case:
    """Train the CNN of examples/plain_cnn.py a little on digits, and save its state dict."""
    from compressor.data.digits import DigitsSource
    from compressor.settings import DataSettings

    spec = importlib.util.spec_from_file_location("plain_cnn", FACTORY.rpartition(":")[0])
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    module, transform = example.build()
    split = DigitsSource().read("sklearn:digits", DataSettings(data="sklearn:digits"))["train"]
    pixels = [
        np.array(Image.open(io.BytesIO(split.samples[index])).convert("RGB").resize((16, 16)))
        for index in range(600)
    ]
    inputs = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert transform.mean == (0.5,) * 3
    _fit(module, lambda rows: module(inputs[rows]), torch.tensor(split.labels[:600]), steps=40)
    torch.save(module.state_dict(), root / "cnn.pt")
    return Case(
        (FACTORY, "--checkpoint", str(root / "cnn.pt")),
        ("--data", "sklearn:digits"),
        ("--factory", FACTORY),
    )


def _fit(model: nn.Module, logits, targets: torch.Tensor, *, steps: int = 60) -> None:
    """Take a few steps of AdamW, so that layers collapse and accuracy is neither chance nor 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        rows = torch.arange(step * 48, (step + 1) * 48) % len(targets)
        nn.functional.cross_entropy(logits(rows), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _tokenizer(vocabulary: list[str]) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
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
