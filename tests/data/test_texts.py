import types

import numpy as np
import pytest
from torch import nn

from compressor.data.labelled import RawSplit
from compressor.data.reading import Drawn
from compressor.data.splits import Draw
from compressor.data.texts import TextReader
from compressor.errors import DataError
from compressor.progress import SILENT

TEXTS = ("good film", "a bad bad film", "good", "the film", "null NA 007")


def reader(model, max_length=None, batch_size=2, strict=False):
    return TextReader(model, max_length=max_length, batch_size=batch_size, strict=strict)


def drawn(texts=TEXTS, indices=None, labels=None):
    labels = tuple(index % 2 for index in range(len(texts))) if labels is None else labels
    draw = Draw("train", np.arange(len(texts)) if indices is None else np.array(indices))
    return Drawn("calibration", draw, RawSplit(texts, labels), {0: 0, 1: 1})


def test_batches_are_what_the_tokenizer_makes_of_the_drawn_texts(text_model, tokenizer):
    split = reader(text_model()).read(drawn(indices=[1, 4, 2]), progress=SILENT).split
    rows = {
        tuple(ids[mask.bool()].tolist()): int(label)
        for inputs, labels in split
        for ids, mask, label in zip(
            inputs["input_ids"], inputs["attention_mask"], labels, strict=True
        )
    }
    assert rows == {tuple(tokenizer(TEXTS[i])["input_ids"]): i % 2 for i in (1, 4, 2)}
    inputs, _ = next(iter(split))
    assert set(inputs) == set(tokenizer.model_input_names)


def test_long_texts_are_cut(text_model):
    long = ("film " * 100,) * 2
    for asked, expected in ((5, 5), (None, 32)):
        split = reader(text_model(), asked).read(drawn(long), progress=SILENT).split
        assert next(iter(split))[0]["input_ids"].shape == (2, expected)


def test_the_hash_follows_texts_and_labels_and_nothing_else(text_model):
    def hash_of(max_length=None, **changes):
        found = reader(text_model(), max_length).read(drawn(**changes), progress=SILENT)
        return found.split.sha256

    same = {hash_of(), hash_of(max_length=4)}
    other = {
        hash_of(indices=[0, 1]),
        hash_of(indices=[1, 0]),
        hash_of(labels=(1,) * 5),
        hash_of(texts=(*TEXTS[:4], "null NA")),
    }
    assert len(same) == 1
    assert len(other | same) == 5


def test_rows_without_text_are_named_and_skipped_or_refused(text_model):
    broken = drawn((*TEXTS, None))
    found = reader(text_model()).read(broken, progress=SILENT)
    assert len(found.split) == len(found.split.labels) == 5
    assert found.notes == (
        "Skipped 1 of 6 calibration samples that cannot be read: train row 5 (holds no text).",
    )
    with pytest.raises(DataError, match=r"train row 5 \(holds no text\)"):
        reader(text_model(), strict=True).read(broken, progress=SILENT)
    with pytest.raises(DataError, match=r"None of the 2"):
        reader(text_model()).read(drawn((None, None)), progress=SILENT)


def test_lengths_that_cannot_work_are_refused(text_model):
    module = nn.Identity()
    module.config = types.SimpleNamespace(max_position_embeddings=16)
    model = text_model()
    limited = type(model)(module, "transformers", "m", "text", tokenizer=model.tokenizer)
    with pytest.raises(DataError, match=r"--max-length 17 .* 16 positions"):
        reader(limited, 17)
    with pytest.raises(DataError, match=r"leaves no room"):
        reader(limited, 2)
    split = reader(limited).read(drawn(("film " * 100,)), progress=SILENT).split
    assert next(iter(split))[0]["input_ids"].shape == (1, 16)


def test_no_tokenizer_and_no_padding_token_are_errors(text_model, tokenizer):
    import copy

    with pytest.raises(DataError, match=r"no tokenizer"):
        reader(text_model(tokenizer=None))
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = None
    with pytest.raises(DataError, match=r"--batch-size 1"):
        reader(text_model(tokenizer=unpadded))
    one_by_one = reader(text_model(tokenizer=unpadded), batch_size=1)
    assert len(list(one_by_one.read(drawn(), progress=SILENT).split)) == 5
