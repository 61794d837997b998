"""Batches that are read again, counted and probed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from compressor.calibration import count, probe_inputs, replayable
from compressor.errors import DataError
from compressor.stages import measure
from tests.methods.measured import batches, trained


def test_a_shuffling_loader_is_kept_in_one_order():
    xs, ys = (torch.cat(part) for part in zip(*batches(), strict=True))
    data = TensorDataset(xs, ys)
    shuffled = replayable(DataLoader(data, batch_size=16, shuffle=True))
    first, again = ([labels for _, labels in shuffled] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    loader = DataLoader(data, batch_size=16)
    assert replayable(loader) is loader
    found = measure(trained(), batches(), selection=DataLoader(data, batch_size=16, shuffle=True))
    assert found.divergence(trained()) == 0.0


def test_number_of_batches():
    class Samples:
        batch_size = 4

        def __len__(self):
            return 9

    xs = torch.zeros(9, 2)
    assert count([1, 2, 3]) == 3
    assert count(Samples()) == 3
    assert count(DataLoader(TensorDataset(xs), batch_size=4)) == 3
    assert count(iter([1, 2])) is None


def test_probe_is_a_few_samples_of_the_first_batch_that_has_some():
    x = torch.arange(10.0)[:, None]
    device = torch.device("cpu")
    assert probe_inputs([(x[:0], None), (x, None)], device).tolist() == [[0.0], [1.0], [2.0]]
    first, second = probe_inputs([((x, x + 1), None)], device)
    assert (first + 1 == second).all()
    assert probe_inputs([({"ids": x}, None)], device)["ids"].shape == (3, 1)
    with pytest.raises(DataError, match="no batch was given"):
        probe_inputs([], device)
