"""Paired losses: their value, and how often their intervals hold what is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.evaluation.metrics.metric import METRICS, predictions
from compressor.evaluation.paired import matched_interval, paired_loss


def pair(samples, *, lost, won, generator):
    """Return predictions of two models that are right 80 % of the time and disagree so often."""
    draw = generator.random(samples)
    first = draw < 0.8
    second = np.where(draw < lost, False, np.where(draw > 1 - won, True, first))
    labels = torch.zeros(samples, dtype=torch.long)

    def made(right):
        logits = torch.zeros(samples, 3)
        logits[:, 0] = torch.as_tensor(np.where(right, 2.0, -2.0))
        return predictions(logits, labels)

    return made(first), made(second)


def test_value_and_sign():
    generator = np.random.default_rng(0)
    dense, small = pair(1000, lost=0.05, won=0.01, generator=generator)
    found = paired_loss(METRICS.get("top-1"), dense, small, level=0.9)
    assert found.value == pytest.approx(dense.correct.mean() - small.correct.mean())
    assert found.low < found.value < found.high
    worse = paired_loss(METRICS.get("log-loss"), dense, small, level=0.9)
    assert worse.value > 0  # a rise of the cross entropy is a loss
    assert paired_loss(METRICS.get("top-1"), dense, dense, level=0.9).value == 0


def test_agreement_is_no_certainty_on_few_samples():
    low, high = matched_interval(0, 0, 100, level=0.9)
    assert -0.02 < low < -0.01
    assert 0.01 < high < 0.02
    assert matched_interval(0, 0, 10_000, level=0.9)[1] < 0.0002


@pytest.mark.parametrize(("name", "trials"), [("top-1", 400), ("balanced-accuracy", 60)])
def test_nine_in_ten_intervals_hold_the_truth(name, trials):
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(trials):
        dense, small = pair(300, lost=0.06, won=0.02, generator=generator)
        found = paired_loss(METRICS.get(name), dense, small, level=0.9, seed=trial)
        held += found.low <= 0.06 - 0.02 <= found.high
    assert held / trials > 0.9 - 3 * np.sqrt(0.09 / trials)
    assert held / trials < 0.9 + 4 * np.sqrt(0.09 / trials)


def test_different_samples_are_refused():
    generator = np.random.default_rng(2)
    dense, _ = pair(10, lost=0.1, won=0.1, generator=generator)
    other = predictions(torch.zeros(10, 3), torch.ones(10, dtype=torch.long))
    with pytest.raises(ValueError, match="different samples"):
        paired_loss(METRICS.get("top-1"), dense, other, level=0.9)
