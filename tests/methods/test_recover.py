"""Distillation of the factors from the dense model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.errors import DataError, ModelError, UsageError
from compressor.evaluation.loop import evaluate
from compressor.methods.recover import RecoverySettings, _rate, recover
from compressor.stages import factorize, plan
from tests.methods.measured import batches, measured, trained

FACTORS = {"a.weight", "a.bias", "a.down.weight", "b.weight", "b.bias", "b.down.weight"}
FAST = RecoverySettings(learning_rate=5e-3)


@pytest.fixture
def small():
    return factorize(trained(), plan(measured(), "layers=15%"))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before, model):
    after = model.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_training_brings_the_predictions_nearer_to_the_dense_model(small):
    held_out = batches(4, seed=9)
    better, done = recover(small, trained(), batches(), 60, settings=FAST, selection=held_out)
    dense = evaluate(trained(), held_out).logits
    assert done.kl_after < 0.8 * done.kl_before
    assert done.best_step > 0
    for model, kl in ((small, done.kl_before), (better, done.kl_after)):
        assert evaluate(model, held_out, dense_logits=dense).kl_to_dense == pytest.approx(kl)


def test_only_factors_of_the_copy_are_trained(small):
    before, dense_before = state(small), state(trained())
    better, _ = recover(small, trained(), batches(), 5, settings=FAST)
    assert changed(before, small) == set()
    assert changed(dense_before, trained()) == set()
    assert changed(before, better) <= FACTORS
    assert {"a.weight", "a.down.weight", "b.weight"} <= changed(before, better)
    assert better.head.weight is small.head.weight
    assert all(p.requires_grad and p.grad is None for p in better.parameters())
    assert all(p.requires_grad and p.grad is None for p in trained().parameters())


def test_labels_teach_where_there_are_some(small):
    shifted = [(x, (y + 1) % 4) for x, y in batches()]
    unlabelled = [(x, None) for x, _ in batches()]
    weighty = replace(FAST, label_weight=20.0)
    taught, done = recover(small, trained(), shifted, 40, settings=weighty)
    alone, silent = recover(small, trained(), unlabelled, 40, settings=weighty)
    assert (done.labels, silent.labels) == (True, False)
    assert evaluate(taught, shifted).accuracy > evaluate(alone, shifted).accuracy + 0.3


def test_labels_that_weigh_nothing_are_not_looked_at(small):
    unlabelled = [(x, None) for x, _ in batches()]
    weightless = RecoverySettings(label_weight=0.0)
    with_labels, done = recover(small, trained(), batches(), 6, settings=weightless)
    without, _ = recover(small, trained(), unlabelled, 6)
    assert not done.labels
    assert changed(state(with_labels), without) == set()


def test_the_factors_best_by_predictions_and_labels_are_kept(small):
    """Labels that the dense model contradicts: what nears them is kept though the KL rises."""
    shifted = [(x, (y + 1) % 4) for x, y in batches()]
    settings = replace(FAST, label_weight=20.0)
    _, done = recover(small, trained(), shifted, 40, settings=settings, selection=shifted)
    assert done.best_step > 0
    assert done.kl_after > done.kl_before


def test_batches_that_come_only_once_are_refused(small):
    with pytest.raises(DataError, match="only once"):
        recover(small, trained(), (batch for batch in batches()), 13)


def test_labels_of_some_batches_alone_are_refused(small):
    (x, y), *_ = batches()
    with pytest.raises(DataError, match="no labels"):
        recover(small, trained(), [(x, y), (x, None)], 2)


def test_factors_that_grew_worse_are_not_kept(small):
    wild = RecoverySettings(learning_rate=10.0)
    same, done = recover(
        small, trained(), batches(), 20, settings=wild, selection=batches(2, seed=9)
    )
    assert done.best_step == 0
    assert done.kl_after == done.kl_before
    assert changed(state(small), same) == set()


def test_without_held_out_batches_the_last_factors_are_kept(small):
    _, done = recover(small, trained(), batches(), 7)
    assert (done.best_step, done.kl_before, done.kl_after) == (7, None, None)


def test_batch_norm_keeps_its_statistics_and_dropout_is_off():
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(24, 40),
        nn.BatchNorm1d(40),
        nn.Dropout(0.5),
        nn.ReLU(),
        nn.Linear(40, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()
    data = [(x.mean(1), y) for x, y in batches()]
    from compressor.stages import measure

    small = factorize(dense, plan(measure(dense, data), "layers=30%"))
    before = state(small)
    better, _ = recover(small, dense, data, 4)
    again, _ = recover(small, dense, data, 4)
    assert not {key for key in changed(before, better) if key.startswith("1.")}
    assert changed(state(better), again) == set()


def test_the_rate_rises_then_falls_as_a_cosine():
    share = _rate(RecoverySettings(warmup=0.1), 100)
    rates = [share(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, UsageError, "0 steps"),
        ({"batches": []}, DataError, "no batch"),
        ({"model": trained()}, UsageError, "no factorized layer"),
        ({"batches": [(torch.full((2, 3, 24), math.nan), None)]}, ModelError, "step 1 of 3"),
    ],
)
def test_what_cannot_be_recovered_is_refused(small, arguments, error, message):
    given = {"model": small, "dense": trained(), "batches": batches(), "steps": 3, **arguments}
    with pytest.raises(error, match=message):
        recover(given["model"], given["dense"], given["batches"], given["steps"])
