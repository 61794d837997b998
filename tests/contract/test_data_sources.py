"""What every registered data source keeps to."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compressor.data.labelled import DATA_SOURCES
from compressor.data.load import find_source
from compressor.settings import DataSettings

TEXTS = [(f"text number {index}", ("yes", "no")[index % 2]) for index in range(12)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def table(directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    for split in ("train", "test"):
        with (directory / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *TEXTS])
    return str(directory)


def folders(directory: Path) -> str:
    for label in ("yes", "no"):
        (directory / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((4, 4, 3), 40 * index, np.uint8)
            Image.fromarray(pixels).save(directory / label / f"{index}.png")
    return str(directory)


def saved(directory: Path) -> str:
    import datasets

    texts, labels = zip(*TEXTS, strict=True)
    datasets.Dataset.from_dict({"text": texts, "label": labels}).save_to_disk(directory)
    return str(directory)


EXAMPLES = {
    "digits": lambda directory: "sklearn:digits",
    "saved": saved,
    "tables": table,
    "images": folders,
    "hub": table,  # the hub's own loader also takes a directory, which needs no network
}


@pytest.fixture(params=DATA_SOURCES.names())
def example(request, tmp_path):
    assert request.param in EXAMPLES, f"add an example of {request.param} to EXAMPLES"
    source = DATA_SOURCES.get(request.param)
    return source, EXAMPLES[request.param](tmp_path / "data")


def test_it_knows_its_name(example):
    source, _ = example
    assert DATA_SOURCES.get(source.name) is source


def test_it_is_the_first_to_recognise_what_it_reads(example):
    source, reference = example
    if source.name == "hub":
        reference = "owner/name"
    assert find_source(reference) is source


@pytest.mark.parametrize("reference", ["/no/such/place", "./nothing.csv", "", "a b c"])
def test_it_does_not_recognise_what_is_not_there(example, reference):
    assert not example[0].recognises(reference)


def test_it_reads_samples_with_labels(example):
    source, reference = example
    splits = source.read(reference, DataSettings(data=reference))
    assert set(splits) in ({"all"}, {"train", "test"})
    for split in splits.values():
        assert len(split.samples) > 0
        assert len(split.labels) == len(split.samples)
        assert all(type(label) in (str, int) for label in split.labels)
        assert len(set(split.labels)) >= 2
        if split.names is not None:
            assert {str(label) for label in split.labels} <= set(split.names)
        for index in (0, len(split.samples) - 1):
            assert isinstance(split.samples[index], (str, bytes, Path))


def test_it_reads_the_same_each_time(example):
    source, reference = example
    first, again = (source.read(reference, DataSettings(data=reference)) for _ in range(2))
    for name, split in first.items():
        assert split.labels == again[name].labels
        assert split.samples[0] == again[name].samples[0]
