"""The smallest model that keeps a promise: found in few trials, and not fooled by noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from compressor.errors import BudgetError, DataError, UsageError
from compressor.evaluation.metrics.metric import METRICS
from compressor.methods.budget import BUDGETS, parse_budget
from compressor.methods.budgets.drop import metric_of, most
from compressor.methods.promise import TRIALS
from compressor.stages import plan, subject_of
from tests.methods.measured import batches, measured


def planned(*budgets, **words):
    return plan(measured("svd"), budgets, method="svd", **words)


def shares(made):
    return [trial.share for trial in made.trials]


def kept_share(made):
    layers = measured("svd").candidates.layers
    kept = sum(layers[name].cost(rank) for name, rank in made.ranks.items())
    return kept / measured("svd").candidates.layer_parameters


def test_the_smallest_trial_that_keeps_the_promise_is_taken():
    made = planned("drop=12")
    assert 1 < len(made.trials) <= TRIALS
    kept = [trial for trial in made.trials if trial.kept]
    broken = [trial for trial in made.trials if not trial.kept]
    assert kept
    assert broken
    assert kept_share(made) == min(trial.share for trial in kept)
    assert all(trial.losses[0].high <= 0.12 + 1e-12 for trial in kept)
    assert all(trial.losses[0].high > 0.12 for trial in broken)
    # Bisection: what was kept and what was broken do not overlap.
    assert min(trial.share for trial in kept) > max(trial.share for trial in broken)


def test_a_looser_promise_allows_a_smaller_model():
    assert kept_share(planned("drop=60")) < kept_share(planned("drop=12"))


def test_too_few_samples_for_a_promise_leave_the_model_dense():
    # 32 selection samples cannot bound a loss at a tenth of a point, whatever is kept.
    made = planned("drop=0.1")
    assert kept_share(made) == 1
    assert not any(trial.kept for trial in made.trials)
    assert made.unmet == ()


def test_where_no_rank_is_smaller_the_model_stays_dense():
    # At multiples of 64 no layer has a rank below its break-even: dense is all there is to try.
    for budget, kept in (("drop=12", True), ("drop=1", False)):
        made = planned(budget, rank_multiple=64)
        assert kept_share(made) == 1
        assert [(trial.share, trial.kept) for trial in made.trials] == [(1.0, kept)]
        assert made.unmet == ()


def test_promises_hold_beside_other_budgets():
    made = planned("drop=60", "layers=50%")
    assert kept_share(made) <= 0.5
    assert made.trials[0].share <= 0.5  # the largest that is allowed comes first
    with pytest.raises(BudgetError, match=r"drop=0\.1 cannot be met together with the others"):
        planned("drop=0.1", "layers=7%")
    nearest = planned("drop=0.1", "layers=7%", best_effort=True)
    assert "drop=0.1" in nearest.unmet[0]
    assert kept_share(nearest) <= 0.07


def test_several_promises_of_several_metrics():
    made = planned("drop=60@macro-f1", "drop=0.5@log-loss")
    chosen = min((trial for trial in made.trials if trial.kept), key=lambda trial: trial.share)
    by_metric = {loss.metric: loss for loss in chosen.losses}
    assert by_metric["macro-f1"].high <= 0.6
    assert by_metric["log-loss"].high <= 0.5
    assert by_metric["log-loss"].unit == "nats"


def test_agreement_needs_no_labels():
    unlabelled = [(inputs, None) for inputs, _ in batches()]
    bare = dataclasses.replace(measured("svd"), selection=unlabelled)
    with pytest.raises(DataError, match="drop=1@agreement does without"):
        plan(bare, "drop=1", method="svd")
    made = plan(bare, "drop=20@agreement", method="svd")
    assert any(trial.kept for trial in made.trials)


def test_without_selection_data_it_is_refused():
    with pytest.raises(DataError, match="selection samples, and there are none"):
        plan(dataclasses.replace(measured("svd"), selection=None), "drop=1", method="svd")


def test_a_method_with_a_rule_of_its_own_decides_anew():
    made = plan(measured("evbmf"), "drop=40", method="evbmf")
    assert any(trial.kept for trial in made.trials)


def test_amounts_are_points_or_nats():
    assert most(parse_budget("drop=1")) == 0.01
    assert most(parse_budget("drop=0.5%@macro-f1")) == 0.005
    assert most(parse_budget("drop=0.02@log-loss")) == 0.02
    assert metric_of(parse_budget("drop=1@agreement")) is METRICS.get("top-1")
    assert most(parse_budget("drop=5%@perplexity")) == 0.05
    subject = subject_of(measured("svd"))
    assert BUDGETS.get("drop").constraint(parse_budget("drop=1"), subject) is None
    with pytest.raises(UsageError, match=r"perplexity, which has no meaning .* predicts classes"):
        BUDGETS.get("drop").constraint(parse_budget("drop=1@perplexity"), subject)
    with pytest.raises(UsageError, match=r"log-loss is told in nats, not in '%'"):
        parse_budget("drop=1%@log-loss")
    with pytest.raises(UsageError, match=r"top-1 is told in points, not in 'nats': write drop=1\."):
        parse_budget("drop=1nats")
    with pytest.raises(UsageError, match=r"names no quality metric\. Available: .*top-1"):
        parse_budget("drop=1@f2")


def test_the_search_is_repeatable():
    torch.manual_seed(5)
    first = planned("drop=12")
    torch.manual_seed(6)
    assert planned("drop=12").ranks == first.ranks
