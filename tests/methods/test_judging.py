"""Judging on the hardest samples first: the same choice as on everything."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from compressor.evaluation.loop import evaluate
from compressor.forward import Forward
from compressor.methods.judging import SHARES, Part, begun, judged_within, unsure
from compressor.methods.recipe import Recipe
from tests.methods.measured import measured


@pytest.fixture(scope="module")
def small():
    return measured().factorized({"a": 3, "b": 3}, Recipe())[0]


def bounded(small, limit):
    found = measured()
    assert found.dense_selection is not None
    return judged_within(small, found.selection, found.dense_selection, limit, forward=Forward())


def test_below_the_limit_everything_is_judged(small):
    whole = measured().judge(small)
    found = bounded(small, 2 * whole.kl_to_dense)
    assert found.kl == pytest.approx(whole.kl_to_dense, rel=1e-5)
    assert found.whole.accuracy == whole.accuracy
    assert found.whole.samples == whole.samples
    torch.testing.assert_close(found.whole.logits, whole.logits)


@pytest.mark.parametrize("shares", list(pairwise((0.0, *SHARES[:-1]))))
def test_what_has_lost_on_a_part_is_not_judged_on_the_rest(small, shares):
    measurement = measured()
    dense, whole = measurement.dense_selection.logits, measurement.judge(small)
    p, q = (logits.double().log_softmax(1) for logits in (dense, whole.logits))
    kl = (p.exp() * (p - q)).sum(1)
    before, least = (
        float(kl[unsure(dense, share)].sum() / len(kl)) if share else 0.0 for share in shares
    )
    assert before < least
    calls = []
    handle = small.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    lost = bounded(small, (before + least) / 2)
    handle.remove()
    assert lost.whole is None
    assert lost.kl == pytest.approx(least, rel=1e-5)
    assert lost.kl < whole.kl_to_dense
    assert sum(calls) == round(shares[1] * len(dense))


def test_one_sample_is_judged_whole(small):
    found = measured()
    inputs, labels = next(iter(found.selection))
    one = [(inputs[:1], labels[:1])]
    dense = evaluate(found.model, one)
    whole = judged_within(small, one, dense, float("inf"), forward=Forward())
    expected = evaluate(small, one, dense_logits=dense.logits)
    assert whole.whole is not None
    assert whole.kl == pytest.approx(expected.kl_to_dense, rel=1e-5)


def test_what_was_begun_is_not_run_again(small):
    found = measured()
    selection, dense = found.selection, found.dense_selection
    first = begun(small, selection, dense, forward=Forward())
    assert first.least == pytest.approx(bounded(small, 0.0).kl)
    calls = []
    handle = small.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    whole = judged_within(small, selection, dense, 1.0, forward=Forward(), first=first)
    handle.remove()
    assert sum(calls) == len(dense.logits) - int(first.seen.sum())
    assert whole.kl == pytest.approx(found.judge(small).kl_to_dense, rel=1e-5)


def test_unsure_are_the_samples_with_the_least_sure_predictions():
    logits = torch.tensor([[9.0, 0.0], [0.1, 0.0], [2.0, 0.0], [0.0, 0.5], [0.0, 7.0]])
    assert unsure(logits, 0.4).tolist() == [False, True, False, True, False]
    assert unsure(logits, 0.0).tolist() == [False, True, False, False, False]


def test_parts_hold_their_samples_in_order_with_inputs_of_every_form():
    x = torch.arange(10.0)[:, None]
    mask = torch.tensor([True, False, True, False, False, False, False, False, True, True])
    for form in (lambda t: t, lambda t: (t, t), lambda t: {"x": t}):
        given = [(form(x[:4]), torch.arange(4)), (form(x[4:8]), None), (form(x[8:]), None)]
        found = list(Part(given, mask))
        assert len(found) == 2
        first = [
            next(iter(i.values())) if isinstance(i, dict) else i[0] if isinstance(i, tuple) else i
            for i, _ in found
        ]
        assert torch.cat(first).flatten().tolist() == [0, 2, 8, 9]
        assert found[0][1].tolist() == [0, 2]
        assert found[1][1] is None


@pytest.mark.parametrize("form", [lambda t: t, lambda t: (t, t), lambda t: {"x": t}])
def test_parts_of_batches_that_are_alike_are_joined_up_to_the_largest_one(form):
    x, wide = torch.arange(16.0)[:, None], torch.arange(4.0)[:, None].expand(4, 2) + 16
    given = [(form(x[k : k + 4]), torch.arange(k, k + 4)) for k in range(0, 16, 4)]
    given.append((form(wide), torch.arange(16, 20)))
    mask = torch.arange(20) % 2 == 0
    found = list(Part(given, mask))
    assert [labels.tolist() for _, labels in found] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    for inputs, labels in found:
        parts = [inputs] if isinstance(inputs, torch.Tensor) else inputs
        parts = parts.values() if isinstance(parts, dict) else parts
        for part in parts:
            assert torch.equal(part[:, 0], labels.float())


def test_whole_is_what_evaluating_gives(small):
    found = measured()
    both = [evaluate(small, Part(found.selection, mask)).logits for mask in halves()]
    together = torch.empty(32, both[0].shape[1])
    for mask, logits in zip(halves(), both, strict=True):
        together[mask] = logits
    torch.testing.assert_close(together, evaluate(small, found.selection).logits)


def halves():
    mask = torch.arange(32) % 3 == 0
    return mask, ~mask
