from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.data.batches import Padding, TextSplit


def split(lengths, batch_size=4, side="right"):
    encodings = [
        {
            "input_ids": np.full(length, index + 1, np.int32),
            "token_type_ids": np.ones(length, np.int32),
        }
        for index, length in enumerate(lengths)
    ]
    padding = Padding({"input_ids": 0, "token_type_ids": 0}, side)
    return TextSplit(encodings, torch.arange(len(lengths)), padding, "hash", batch_size)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.integers(1, 9),
    st.sampled_from(["left", "right"]),
)
def test_every_text_comes_once_with_its_label_and_nothing_but_padding_beside(lengths, size, side):
    texts = split(lengths, size, side)
    seen = []
    for inputs, labels in texts:
        assert len(labels) <= size
        mask = inputs["attention_mask"]
        assert mask.shape == inputs["input_ids"].shape
        assert mask.sum(1).max() == mask.shape[1]
        for ids, types, row, label in zip(
            inputs["input_ids"], inputs["token_type_ids"], mask, labels.tolist(), strict=True
        ):
            assert ids.equal(row * (label + 1))
            assert types.equal(row)
            assert row.sum() == lengths[label]
            real = row.nonzero()
            assert (real[0] == 0) if side == "right" else (real[-1] == len(row) - 1)
        seen += labels.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    assert texts.labels.tolist() == seen
    assert [batch[1].tolist() for batch in texts] == [batch[1].tolist() for batch in texts]


def test_texts_of_like_length_share_a_batch():
    lengths = np.random.default_rng(0).permutation(np.repeat([2, 30], 16)).tolist()
    padded = sum(inputs["attention_mask"].numel() for inputs, _ in split(lengths, 8))
    assert padded == sum(lengths)


def test_mixed_texts_stay_in_their_order():
    texts = replace(split([9, 1, 5, 2, 8, 3], 4), mixed=True)
    assert [labels.tolist() for _, labels in texts] == [[0, 1, 2, 3], [4, 5]]
    assert texts.labels.tolist() == list(range(6))


def test_the_first_batches_are_not_the_shortest_texts():
    lengths = list(range(1, 101))
    widths = [inputs["input_ids"].shape[1] for inputs, _ in split(lengths, 5)]
    assert widths != sorted(widths)
    assert np.mean(widths[:5]) == pytest.approx(np.mean(widths), rel=0.5)


def test_without_labels_there_are_none():
    labelled = split([3, 2])
    texts = TextSplit(labelled.encodings, None, labelled.padding, "hash", 2)
    assert texts.labels is None
    assert [labels for _, labels in texts] == [None]
