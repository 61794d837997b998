import pytest
import torch

from compressor.data import load_data
from compressor.errors import DataError
from compressor.settings import DataSettings

ROWS = [(f"good film {i}", "pos") if i % 3 else (f"bad film {i}", "neg") for i in range(60)]


def load(path, model, listener=None, seed=0, **options):
    settings = DataSettings(data=str(path), **options)
    if listener is None:
        return load_data(settings, model, seed=seed)
    return load_data(settings, model, seed=seed, progress=listener)


def test_a_table_becomes_three_splits_with_the_models_classes(write_table, text_model):
    write_table("data/train.csv", ROWS)
    path = write_table("data/test.csv", [(f"film {text}", label) for text, label in ROWS]).parent
    data = load(path, text_model(), calibration=20)
    assert [len(s) for s in (data.calibration, data.selection, data.test)] == [20, 10, 60]
    assert data.class_names == ("neg", "pos")
    assert data.classes is None
    assert data.test.labels.bincount().tolist() == [20, 40]
    assert data.calibration.batch_size == 32
    assert len({s.sha256 for s in (data.calibration, data.selection, data.test)}) == 3
    assert data.notes == ()


def test_recovery_learns_from_as_many_samples_as_its_steps_can_see(write_table, text_model):
    write_table("data/train.csv", ROWS)
    path = write_table("data/test.csv", [(f"film {text}", label) for text, label in ROWS]).parent
    settings = DataSettings(data=str(path), calibration=20, batch_size=4)
    none, some, all_of_them = (
        load_data(settings, text_model(), seed=0, recovery_steps=steps) for steps in (0, 5, 100)
    )
    assert [len(data.recovery) for data in (none, some, all_of_them)] == [0, 20, 50]
    assert some.calibration.sha256 == none.calibration.sha256
    # Every batch holds texts of every length and class, as their order is drawn.
    lengths = [inputs["attention_mask"].sum(1).max() for inputs, _ in all_of_them.recovery]
    assert len(set(map(int, lengths))) < 3
    assert sum(len(set(labels.tolist())) == 2 for _, labels in all_of_them.recovery) > 6


def test_splits_that_are_not_asked_for_are_not_read(write_table, text_model, listener):
    path = write_table("data.csv", ROWS)
    whole = load(path, text_model())
    settings = DataSettings(data=str(path))
    alone = load_data(settings, text_model(), seed=0, splits=("test",), progress=listener)
    assert (len(alone.calibration), len(alone.selection)) == (0, 0)
    assert alone.test.sha256 == whole.test.sha256
    assert alone.test.labels.equal(whole.test.labels)
    assert list(alone.calibration) == []


def test_the_bundled_data_is_named_where_a_reference_is_mistyped(text_model):
    with pytest.raises(DataError, match="only sklearn:digits is"):
        load("sklearn:digit", text_model())
    with pytest.raises(DataError, match=r"a hub data set id, or sklearn:digits"):
        load("nowhere/at/all.csv", text_model())


def test_the_same_seed_gives_the_same_batches(write_table, text_model):
    path = write_table("data.csv", ROWS)
    first, again, other = (load(path, text_model(), seed=seed) for seed in (0, 0, 1))
    for split in ("calibration", "selection", "test"):
        assert getattr(first, split).sha256 == getattr(again, split).sha256
    assert first.calibration.sha256 != other.calibration.sha256
    for (inputs, labels), (inputs_again, labels_again) in zip(first.test, again.test, strict=True):
        assert inputs["input_ids"].equal(inputs_again["input_ids"])
        assert labels.equal(labels_again)


def test_part_of_the_models_classes(write_images, image_model):
    root = write_images("data", classes=("dog", "cat"))
    data = load(root, image_model(names=("bee", "dog", "ant", "cat")))
    assert data.classes.equal(torch.tensor([1, 3]))
    assert data.class_names == ("dog", "cat")
    assert data.test.labels.max() == 1
    assert any("2 of the model's 4 classes" in note for note in data.notes)
    assert data.test.batch_size == 64


def test_every_note_is_told_once(write_images, image_model, listener):
    root = write_images("data")
    (root / "cat" / "3.png").write_bytes(b"broken")
    data = load(root, image_model(), listener)
    assert listener.notes == list(data.notes)
    assert any("3.png" in note for note in data.notes)
    assert sum(len(s) for s in (data.calibration, data.selection, data.test)) == 19
    with pytest.raises(DataError, match=r"3\.png"):
        load(root, image_model(), strict=True)


def test_data_without_labels_loads_and_says_so(write_table, text_model):
    path = write_table("data.csv", [(text,) for text, _ in ROWS], header=("text",))
    data = load(path, text_model())
    assert data.test.labels is None
    assert data.class_names == ("neg", "pos")
    assert "no labels" in data.notes[0]
    assert all(labels is None for _, labels in data.calibration)


def test_a_test_split_with_hidden_labels_gives_way(write_table, text_model):
    write_table("data/train.csv", ROWS)
    write_table("data/dev.csv", ROWS[:9])
    path = write_table("data/test.csv", [(text, "") for text, _ in ROWS]).parent
    data = load(path, text_model())
    assert len(data.test) == 9
    assert "test split has no labels" in data.notes[0]


def test_duplicates_between_splits_are_noted(write_table, text_model):
    write_table("data/train.csv", ROWS)
    path = write_table("data/test.csv", ROWS).parent
    data = load(path, text_model())
    assert f"{len(data.calibration) + len(data.selection)} distinct test samples" in data.notes[-1]


def test_digits_fit_an_image_model(image_model):
    names = tuple(str(digit) for digit in range(10))
    data = load("sklearn:digits", image_model(names=names), calibration=100)
    images, labels = next(iter(data.test))
    assert images.shape == (64, 3, 16, 16)
    assert labels.shape == (64,)
    assert len(data.test) == 600
    assert images[:, 0].equal(images[:, 1])


def test_missing_data_names_what_lies_near(write_table, text_model):
    path = write_table("reviews.csv", ROWS)
    with pytest.raises(DataError, match=r"No such data.*Did you mean .*reviews\.csv"):
        load(path.with_name("review.csv"), text_model())


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], ("text", "label"), "empty"),
        ([(text, "pos") for text, _ in ROWS], ("text", "label"), "one class only"),
        ([*ROWS, ("odd", "mixed")], ("text", "label"), "mixed.*neg, pos"),
        ([(t, i) for i, (t, _) in enumerate(ROWS)], ("text", "row"), "--label-column"),
        ([*ROWS, ("odd", "")], ("text", "label"), "have no label"),
        (ROWS[:4], ("text", "label"), "Too few samples"),
    ],
)
def test_bad_tables_say_what_to_do(write_table, text_model, rows, header, message):
    with pytest.raises(DataError, match=message):
        load(write_table("data.csv", rows, header=header), text_model())


def test_wrong_number_of_classes_lists_both_sides(write_table, text_model):
    path = write_table("data.csv", [(text, i % 5) for i, (text, _) in enumerate(ROWS)])
    with pytest.raises(DataError, match=r"3 of the data's 5 labels .*2, 3, 4.*neg, pos"):
        load(path, text_model())


def test_data_of_another_modality_is_refused(write_table, write_images, text_model, image_model):
    with pytest.raises(DataError, match=r"holds texts, but model takes images"):
        load(write_table("data.csv", ROWS), image_model())
    with pytest.raises(DataError, match=r"holds images, but model takes texts"):
        load(write_images("data"), text_model())
    tensors = image_model()
    tensors = type(tensors)(tensors.module, "module", "net.py:make", "tensor", num_classes=2)
    with pytest.raises(DataError, match=r"--input-size"):
        load("sklearn:digits", tensors)


def test_an_empty_directory_and_a_foreign_file_are_refused(tmp_path, text_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"an empty directory"):
        load(tmp_path / "empty", text_model())
    with pytest.raises(DataError, match=r"a \.docx file"):
        load(tmp_path / "data.docx", text_model())
