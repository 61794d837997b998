from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.labelled import RawSplit
from compressor.data.pictures import ImageReader, default_batch_size
from compressor.data.reading import Drawn
from compressor.data.splits import Draw
from compressor.errors import DataError
from compressor.progress import SILENT


@pytest.fixture
def drawn(write_images):
    paths = tuple(sorted(write_images("data", count=6).rglob("*.png")))
    labels = tuple(path.parent.name for path in paths)
    raw = RawSplit(paths, labels)
    return Drawn("test", Draw("all", np.arange(12)), raw, {"cat": 0, "dog": 1})


def read(model, drawn, **options):
    options = {"batch_size": 5, "strict": False} | options
    return ImageReader(model, **options).read(drawn, progress=SILENT)


def test_kept_and_lazily_decoded_images_are_the_same(image_model, drawn):
    kept = read(image_model(), drawn).split
    lazy = read(image_model(), drawn, cache_bytes=0).split
    assert kept.cache is not None
    assert lazy.cache is None
    assert kept.sha256 == lazy.sha256
    for (images, labels), (again, labels_again) in zip(kept, lazy, strict=True):
        assert images.equal(again)
        assert labels.equal(labels_again)
        assert images.dtype == torch.float32
    assert torch.cat([labels for _, labels in lazy]).equal(lazy.labels)
    assert [len(labels) for _, labels in lazy] == [5, 5, 2]


def test_memory_for_images_is_shared_by_the_splits_of_a_run(image_model, drawn):
    size = 12 * 3 * 16 * 16
    reader = ImageReader(image_model(), batch_size=None, strict=False, cache_bytes=2 * size - 1)
    kept, refused = (reader.read(drawn, progress=SILENT).split for _ in range(2))
    assert kept.cache is not None
    assert refused.cache is None


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_corrupt_image_is_named_and_skipped_or_refused(image_model, drawn, cache_bytes):
    corrupt = drawn.raw.samples[3]
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    found = read(image_model(), drawn, cache_bytes=cache_bytes)
    assert len(found.split) == len(found.split.labels) == 11
    assert sum(len(images) for images, _ in found.split) == 11
    assert found.split.labels.bincount().tolist() == [5, 6]
    assert str(corrupt) in found.notes[0]
    assert "Skipped 1 of 12 test samples" in found.notes[0]
    with pytest.raises(DataError, match=r"3\.png.*--strict"):
        read(image_model(), drawn, strict=True)


def test_the_hash_follows_contents_and_labels(image_model, drawn):
    first = read(image_model(), drawn).split.sha256
    assert read(image_model(size=(1, 4, 4)), drawn).split.sha256 == first
    drawn.raw.samples[0].write_bytes(drawn.raw.samples[1].read_bytes())
    assert read(image_model(), drawn).split.sha256 != first


def test_a_transform_of_ones_own_may_give_any_tensor_but_of_one_size(image_model, drawn):
    def model(custom):
        base = image_model()
        return replace(base, transform=replace(base.transform, custom=custom))

    split = read(model(lambda image: torch.arange(6.0).view(1, 2, 3)), drawn).split
    assert next(iter(split))[0].equal(torch.arange(6.0).view(1, 1, 2, 3).expand(5, -1, -1, -1))
    Image.new("RGB", (9, 9)).save(drawn.raw.samples[5])
    with pytest.raises(DataError, match=r"5\.png.*end it with a crop"):
        read(model(lambda image: torch.zeros(3, image.height, image.width)), drawn)


def test_a_model_without_transform_says_what_to_give(image_model):
    with pytest.raises(DataError, match=r"--input-size"):
        ImageReader(image_model(transform=None), batch_size=None, strict=False)


@pytest.mark.parametrize(
    ("side", "device", "expected"),
    [(32, "cpu", 64), (224, "cpu", 8), (1024, "cpu", 1), (224, "meta", 64)],
)
def test_large_images_come_in_smaller_batches_on_a_cpu(image_model, side, device, expected):
    model = image_model()
    transform = replace(model.transform, input_size=(3, side, side))
    module = torch.nn.Linear(2, 2, device=device)
    assert default_batch_size(replace(model, transform=transform, module=module)) == expected
