"""Metrics against scikit-learn, and against definitions written out; weights against repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from compressor.evaluation.metrics.metric import METRICS, predictions, scores


def drawn(samples=400, classes=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    labels[labels == 3] = 0  # a class that never occurs
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), labels] += 1.5
    return logits, labels


def test_against_scikit_learn():
    logits, labels = drawn()
    found = scores(predictions(logits, labels))
    p = logits.double().softmax(1).numpy()
    predicted, true = p.argmax(1), labels.numpy()
    every = np.arange(p.shape[1])
    assert found["top-1"] == pytest.approx(oracle.accuracy_score(true, predicted))
    assert found["top-5"] == pytest.approx(oracle.top_k_accuracy_score(true, p, k=5, labels=every))
    balanced = oracle.recall_score(true, predicted, average=None, labels=np.unique(true)).mean()
    assert found["balanced-accuracy"] == pytest.approx(balanced)
    f1 = oracle.f1_score(true, predicted, average="macro", zero_division=0)
    assert found["macro-f1"] == pytest.approx(f1)
    assert found["log-loss"] == pytest.approx(oracle.log_loss(true, p, labels=every))


def test_calibration_error_written_out():
    logits, labels = drawn()
    p = logits.double().softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = scores(predictions(logits, labels))["calibration-error"]
    assert found == pytest.approx(expected)
    certain = torch.eye(4)[torch.tensor([0, 1, 2, 3])] * 1000
    assert scores(predictions(certain, torch.tensor([0, 1, 2, 0])))["calibration-error"] == 0.25


def test_five_classes_have_no_top_5():
    logits, labels = drawn(classes=5)
    assert "top-5" not in scores(predictions(logits, labels))


@pytest.mark.parametrize("name", METRICS.names())
def test_a_weight_of_two_is_a_sample_twice(name):
    logits, labels = drawn(samples=60)
    weights = np.arange(60) % 3
    index = np.repeat(np.arange(60), weights)
    metric = METRICS.get(name)
    weighed = metric.value(predictions(logits, labels), weights.astype(float))
    repeated = metric.value(predictions(logits[index], labels[index]), np.ones(len(index)))
    assert weighed == pytest.approx(repeated)


@pytest.mark.parametrize("name", METRICS.names())
def test_a_better_model_scores_better(name):
    logits, labels = drawn()
    good = 8 * torch.nn.functional.one_hot(labels, 9) + 0.01 * logits
    metric = METRICS.get(name)
    every = np.ones(len(labels))
    gain = metric.value(predictions(good, labels), every) - metric.value(
        predictions(logits, labels), every
    )
    assert (gain > 0) == metric.rises
