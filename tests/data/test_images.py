import pytest

from compressor.data.images import ImageFolderSource
from compressor.errors import DataError
from compressor.settings import DataSettings


def read(root):
    assert ImageFolderSource().recognises(str(root))
    return ImageFolderSource().read(str(root), DataSettings(data=str(root)))


def test_folders_are_classes_in_natural_order(write_images):
    root = write_images("data", classes=("10", "9", "2"), count=2)
    split = read(root)["all"]
    assert split.names == ("2", "9", "10")
    assert split.labels == ("2", "2", "9", "9", "10", "10")
    assert [path.parent.name for path in split.samples] == list(split.labels)


def test_folders_named_after_splits_are_splits(write_images):
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        write_images(f"data/{name}", count=count)
    root = write_images("data/ignored_extra", count=1).parent
    splits = read(root)
    assert {name: len(split.samples) for name, split in splits.items()} == {
        "train": 6,
        "validation": 4,
        "test": 2,
    }


def test_a_class_called_test_is_a_class(write_images):
    assert read(write_images("data", classes=("test", "quiz"), count=1))["all"].names == (
        "quiz",
        "test",
    )


def test_other_files_and_hidden_ones_are_passed_over(write_images):
    root = write_images("data", count=1)
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "dog" / "deeper").mkdir()
    (root / "dog" / "0.png").rename(root / "dog" / "deeper" / "0.PNG")
    split = read(root)["all"]
    assert [path.name for path in split.samples] == ["0.png", "0.PNG"]
    assert split.labels == ("cat", "dog")


def test_images_in_no_folder_have_no_labels(write_images):
    split = read(write_images("data", count=3) / "cat")["all"]
    assert len(split.samples) == 3
    assert split.labels is None


def test_no_images_is_an_error(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images found"):
        read(tmp_path / "data")
