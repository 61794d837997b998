from pathlib import Path

import pytest

from compressor.data.saved import SavedSource
from compressor.errors import DataError
from compressor.settings import DataSettings

FACTS = {"text": ["null", "b", "c", "d"], "label": ["x", "y", "x", "y"]}


def read(path, **options):
    assert SavedSource().recognises(str(path))
    return SavedSource().read(str(path), DataSettings(data=str(path), **options))


def test_one_table_is_one_split(tmp_path):
    import datasets

    datasets.Dataset.from_dict(FACTS).save_to_disk(tmp_path / "data")
    split = read(tmp_path / "data")["all"]
    assert [split.samples[i] for i in range(4)] == FACTS["text"]
    assert split.labels == ("x", "y", "x", "y")


def test_several_tables_are_splits(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict(FACTS)
    splits = datasets.DatasetDict(train=table, dev=table.select([0, 1]), unsupervised=table)
    splits.save_to_disk(tmp_path / "data")
    found = read(tmp_path / "data")
    assert {name: len(split.samples) for name, split in found.items()} == {
        "train": 4,
        "validation": 2,
    }


def test_images_come_as_their_files_with_class_names(tmp_path, write_images):
    import datasets

    root = write_images("pictures", count=2)
    paths = sorted(root.rglob("*.png"))
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}
    )
    facts = {"image": [str(path) for path in paths], "kind": [1, 1, 0, 0]}
    datasets.Dataset.from_dict(facts, features).save_to_disk(tmp_path / "data")
    split = read(tmp_path / "data")["all"]
    assert split.labels == ("cat", "cat", "dog", "dog")
    assert split.names == ("dog", "cat")
    contents = [
        sample.read_bytes() if isinstance(sample, Path) else sample
        for sample in (split.samples[i] for i in range(4))
    ]
    assert contents == [path.read_bytes() for path in paths]


def test_rows_marked_minus_one_hide_their_labels(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = datasets.Dataset.from_dict({"text": ["p", "q"], "label": [-1, -1]}, features)
    table.save_to_disk(tmp_path / "data")
    assert read(tmp_path / "data")["all"].labels is None


def test_a_class_beyond_the_named_ones_is_damage(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"text": ["p", "q"], "label": [0, 7]})
    features = table.features.copy()
    features["label"] = datasets.ClassLabel(names=["a", "b"])
    damaged = datasets.Dataset(table.data, info=datasets.DatasetInfo(features=features))
    damaged.save_to_disk(tmp_path / "data")
    with pytest.raises(DataError, match=r"class 7, but the table names 2"):
        read(tmp_path / "data")


def test_measured_values_are_no_classes(tmp_path):
    import datasets

    facts = {"text": ["p", "q"], "score": [0.5, 1.0]}
    datasets.Dataset.from_dict(facts).save_to_disk(tmp_path / "data")
    with pytest.raises(DataError, match=r"row 0 holds 0\.5, which is no class"):
        read(tmp_path / "data", label_column="score")


def test_a_damaged_directory_is_named(tmp_path):
    import datasets

    datasets.Dataset.from_dict(FACTS).save_to_disk(tmp_path / "data")
    for file in (tmp_path / "data").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match=r"cannot be loaded"):
        read(tmp_path / "data")
