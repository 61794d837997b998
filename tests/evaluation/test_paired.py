"""Paired losses: their value, and how often their intervals hold what is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.evaluation.metrics.metric import METRICS, predictions
from compressor.evaluation.paired import matched_interval, paired_loss, share_loss


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


def of_windows(windows, size, *, generator):
    """Return which tokens each of two models predicts rightly; whole windows are lost at once.

    The truth is that 5 % more of the tokens are lost than won.
    """
    rate = np.where(generator.random(windows) < 0.1, 0.5, 0.0)  # of every tenth window, half
    number = np.repeat(np.arange(windows), size)
    lost = generator.random(windows * size) < rate[number]
    return np.ones_like(lost), ~lost, number


def test_windows_are_drawn_whole_as_their_tokens_fail_together():
    generator = np.random.default_rng(3)
    by_windows = by_tokens = 0
    for trial in range(40):
        dense, small, windows = of_windows(60, 20, generator=generator)
        found = share_loss(dense, small, windows=windows, level=0.9, seed=trial)
        by_windows += found.low <= 0.05 <= found.high
        alone = share_loss(dense, small, level=0.9)
        by_tokens += alone.low <= 0.05 <= alone.high
    assert by_windows / 40 > 0.9 - 3 * np.sqrt(0.09 / 40)
    assert by_tokens / 40 < 0.75  # as if tokens were independent: far too sure


def test_the_interval_over_windows_is_that_of_their_means():
    # Windows of one size: the bootstrap's spread is the standard error of the windows' means.
    generator = np.random.default_rng(4)
    dense, small, windows = of_windows(200, 10, generator=generator)
    means = (dense.astype(float) - small).reshape(200, 10).mean(1)
    found = share_loss(dense, small, windows=windows, level=0.9)
    assert found.value == pytest.approx(means.mean())
    half = 1.645 * means.std() / np.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_few_windows_make_wide_intervals_and_a_lone_one_none():
    same = np.ones(40, dtype=bool)
    windows = np.repeat([0, 1], 20)
    assert share_loss(same, same, windows=windows, level=0.9).high > 0.02  # no certainty
    assert share_loss(same, same, windows=np.zeros(40, dtype=int), level=0.9) is None
    draw = np.random.default_rng(5).random(40) < 0.5
    few = share_loss(same, draw, windows=np.repeat(np.arange(4), 10), level=0.9)
    many = share_loss(same, draw, windows=np.arange(40), level=0.9)
    assert few.high - few.low > 1.2 * (many.high - many.low) or few.high - few.low > 0.25


def test_perplexity_rises_by_a_share_of_the_dense_one():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (600,), generator=generator)
    windows = torch.arange(30).repeat_interleave(20)
    logits = torch.randn(600, 7, generator=generator)
    worse = logits + 0.5 * torch.randn(600, 7, generator=generator)
    pair = [predictions(each, labels, windows) for each in (logits, worse)]
    found = paired_loss(METRICS.get("perplexity"), *pair, level=0.9)
    nats = paired_loss(METRICS.get("log-loss"), *pair, level=0.9)
    assert found.value == pytest.approx(np.expm1(nats.value))
    assert found.low == pytest.approx(np.expm1(nats.low), abs=2e-3)
    assert found.high == pytest.approx(np.expm1(nats.high), abs=2e-3)
    alone = [predictions(each, labels) for each in (logits, worse)]
    assert paired_loss(METRICS.get("perplexity"), *alone, level=0.9) is None
    assert paired_loss(METRICS.get("macro-f1"), *pair, level=0.9) is None
