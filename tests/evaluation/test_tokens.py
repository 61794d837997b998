"""What evaluating tokens holds of the batches before."""

import sys

import pytest
import torch
from torch import nn

from compressor.evaluation.tokens import TokenScores
from compressor.tokens import Head
from tests.test_heap import pieces_between_small_ones, resident


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_pages_that_batches_before_took_are_given_back():
    scores, logits = TokenScores(), torch.randn(2, 5, 11)
    pieces, small = pieces_between_small_ones()
    before = resident()
    pieces.clear()
    scores.add(Head(nn.Identity()), logits, torch.randint(0, 11, (2, 5)), None)
    assert before - resident() > 60_000_000
    assert len(small) == 2000
    assert scores.samples == 2
