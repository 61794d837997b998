"""Texts for language models: which file or table is which split."""

import pytest
from datasets import Dataset

from compressor.data.corpus import read_corpus
from compressor.errors import DataError
from compressor.settings import DataSettings


class Tables:
    """A data source that holds named tables of texts."""

    def __init__(self, *names):
        self.names = names

    def tables(self, reference):
        return {name: Dataset.from_dict({"text": [f"of {name}"]}) for name in self.names}


def corpus(reference, source=None):
    return read_corpus(
        str(reference), DataSettings(data=str(reference)), find=lambda reference: source
    )


def test_files_are_told_by_their_names_and_parts_are_joined_in_order(tmp_path):
    for name in ("train-2", "train-1", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    found = corpus(tmp_path)
    assert list(found["train"]) == ["train-1", "train-2"]
    assert list(found["test"]) == ["test"]
    assert set(found) == {"train", "test"}


def test_a_file_that_is_no_utf_8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.txt cannot be read as UTF-8"):
        list(corpus(tmp_path / "a.txt")["all"])


def test_a_table_of_each_split_is_read():
    found = corpus("hub/name", Tables("train", "dev", "extra"))
    assert {split: list(texts) for split, texts in found.items()} == {
        "train": ["of train"],
        "validation": ["of dev"],
    }


def test_two_tables_of_one_split_are_refused():
    with pytest.raises(DataError, match="two splits are both validation"):
        corpus("hub/name", Tables("train", "dev", "validation"))


def test_tables_that_tell_no_split_are_listed():
    with pytest.raises(DataError, match=r"no split is called.*\['a', 'b'\]"):
        corpus("hub/name", Tables("a", "b"))
