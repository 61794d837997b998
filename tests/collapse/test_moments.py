from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.collapse import moments as moments_module
from compressor.collapse.moments import (
    ONE_HOT_CLASSES,
    ClassMoments,
    _class_products,
    _class_sums,
)
from compressor.collapse.symmetric import PANEL

from .naive import naive, problems, random_problem

FIELDS = ("counts", "means", "traces", "within")


def accumulated(problem, splits=(), *, scatter=True, weights=None):
    """Feed the rows in the batches that the cuts at ``splits`` make."""
    moments = ClassMoments(problem.classes, problem.rows.shape[1], scatter=scatter)
    edges = [0, *sorted(splits), len(problem.rows)]
    for start, stop in pairwise(edges):
        moments.update(
            problem.rows[start:stop],
            problem.labels[start:stop],
            None if weights is None else weights[start:stop],
        )
    return moments


def assert_is_naive(moments, problem, weights=None):
    rows, labels = problem.wide
    expected = naive(rows, labels, problem.classes, weights)
    spread = max(np.trace(expected.total), 1e-3)
    close = {"rtol": problem.tolerance, "atol": problem.tolerance * spread}
    np.testing.assert_allclose(moments.counts, expected.counts, rtol=1e-12)
    # float32 rows are centred in float32: the means keep that precision relative to the spread.
    width = 1e-9 if problem.rows.dtype == torch.float64 else 1e-6 * np.sqrt(spread)
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-12, atol=width)
    np.testing.assert_allclose(moments.means, expected.means, rtol=1e-12, atol=width)
    np.testing.assert_allclose(
        moments.traces / moments.total, expected.traces / expected.counts.sum(), **close
    )
    np.testing.assert_allclose(moments.within_covariance, expected.within, **close)
    np.testing.assert_allclose(moments.between_covariance, expected.between, **close)
    np.testing.assert_allclose(moments.total_covariance, expected.total, **close)
    np.testing.assert_allclose(moments.within_trace, np.trace(expected.within), **close)
    np.testing.assert_allclose(moments.between_trace, np.trace(expected.between), **close)


def assert_same(one, other, tolerance=1e-9):
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance, msg=name
        )


@settings(max_examples=80, deadline=None)
@given(problem=problems(), data=st.data())
def test_any_split_into_batches_gives_the_definitions(problem, data):
    cuts = data.draw(st.lists(st.integers(0, len(problem.rows)), max_size=4))
    assert_is_naive(accumulated(problem, cuts), problem)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), data=st.data())
def test_shards_merge_in_any_order_to_the_whole(problem, data):
    shard = torch.tensor(
        data.draw(
            st.lists(st.integers(0, 3), min_size=len(problem.rows), max_size=len(problem.rows))
        )
    )
    order = data.draw(st.permutations(range(4)))
    merged = ClassMoments(problem.classes, problem.rows.shape[1])
    for number in order:
        part = ClassMoments(problem.classes, problem.rows.shape[1])
        part.update(problem.rows[shard == number], problem.labels[shard == number])
        merged = merged.merge(part)
    assert_is_naive(merged, problem)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(problem, seed):
    order = torch.randperm(len(problem.rows), generator=torch.Generator().manual_seed(seed))
    moments = ClassMoments(problem.classes, problem.rows.shape[1])
    for part in order.split(7):
        moments.update(problem.rows[part], problem.labels[part])
    assert_is_naive(moments, problem)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_weights_count_a_row_as_often_as_they_say(problem, seed):
    weights = torch.rand(len(problem.rows), generator=torch.Generator().manual_seed(seed)) + 0.01
    weights = weights.double()
    moments = accumulated(problem, [len(problem.rows) // 2], weights=weights)
    assert_is_naive(moments, problem, weights.numpy())


def test_whole_weights_are_repeated_rows():
    problem = random_problem(3, 40, 6, 3)
    times = torch.arange(40) % 4
    repeated = ClassMoments(3, 6)
    repeated.update(
        problem.rows.repeat_interleave(times, 0), problem.labels.repeat_interleave(times)
    )
    assert_same(accumulated(problem, [11], weights=times), repeated)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_total_is_within_and_between(problem):
    moments = accumulated(problem, [len(problem.rows) // 3])
    rows = problem.rows.double()
    total = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
    torch.testing.assert_close(
        moments.within_covariance + moments.between_covariance,
        total,
        rtol=problem.tolerance,
        atol=problem.tolerance * max(float(total.trace()), 1e-3),
    )


def test_float32_keeps_its_digits_at_an_offset_of_a_thousand():
    problem = random_problem(0, 4000, 8, 5, offset=1e3, dtype=torch.float32)
    moments = accumulated(problem, range(0, 4000, 128))
    rows, labels = problem.wide
    expected = naive(rows, labels, 5)
    error = np.abs(moments.within_covariance.numpy() - expected.within).max()
    assert error / np.abs(expected.within).max() < 1e-6
    raw = problem.rows.T @ problem.rows / 4000 - torch.outer(
        problem.rows.mean(0), problem.rows.mean(0)
    )
    assert (raw.double() - torch.from_numpy(expected.total)).abs().max() > 1e-3  # what is avoided


def test_more_rows_than_a_block_are_the_same_as_fewer(monkeypatch):
    problem = random_problem(1, 500, 5, 4, offset=50.0)
    whole = accumulated(problem)
    monkeypatch.setattr(moments_module, "BLOCK", 64)
    assert_same(accumulated(problem), whole)


def test_half_precision_rows_are_computed_in_single_precision():
    problem = random_problem(2, 50, 4, 3, dtype=torch.bfloat16)
    moments = accumulated(problem)
    assert_is_naive(moments, type(problem)(problem.rows.float(), problem.labels, 3))


@given(problem=problems())
@settings(max_examples=20, deadline=None)
def test_without_scatter_the_traces_are_the_same(problem):
    full, lean = accumulated(problem), accumulated(problem, scatter=False)
    torch.testing.assert_close(lean.traces, full.traces)
    assert lean.within_trace == full.within_trace
    # One trace sums float32 products, the other float64 squares.
    assert float(full.within.trace()) == pytest.approx(float(full.traces.sum()), rel=1e-5, abs=1e-9)
    with pytest.raises(ValueError, match="scatter"):
        _ = lean.within_covariance


def test_no_memory_grows_with_classes_times_features_squared():
    moments = ClassMoments(10_000, 32)
    moments.update(torch.randn(64, 32), torch.arange(64) * 150)
    assert sum(tensor.numel() for tensor in moments.state().values()) < 10_000 * 40
    assert moments.total == 64


def test_an_empty_batch_changes_nothing():
    problem = random_problem(4, 20, 3, 2)
    moments = accumulated(problem)
    before = moments.state()
    moments.update(problem.rows[:0], problem.labels[:0])
    assert all(torch.equal(before[name], value) for name, value in moments.state().items())


def test_nothing_seen_has_finite_moments():
    moments = ClassMoments(3, 4)
    assert moments.total == 0
    assert moments.within_trace == moments.between_trace == 0
    assert torch.equal(moments.mean, torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(moments.total_covariance).all()


def test_merge_leaves_both_sides_as_they_were():
    one = accumulated(random_problem(5, 20, 3, 2))
    other = accumulated(random_problem(6, 20, 3, 2))
    before = one.state(), other.state()
    merged = one.merge(other)
    assert merged.total == 40
    for moments, state in zip((one, other), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in moments.state().items())


def test_state_survives_the_trip():
    moments = accumulated(random_problem(7, 20, 3, 2))
    again = ClassMoments.from_state(moments.state())
    again.update(torch.ones(2, 3), torch.tensor([0, 1]))
    assert again.total == moments.total + 2
    lean = ClassMoments(2, 3, scatter=False)
    assert ClassMoments.from_state(lean.state()).within is None


def test_moments_with_and_without_scatter_do_not_merge():
    with pytest.raises(ValueError, match="scatter"):
        ClassMoments(2, 3).merge(ClassMoments(2, 3, scatter=False))
    with pytest.raises(ValueError, match=r"2 classes × 3 features.*2 × 4"):
        ClassMoments(2, 3).merge(ClassMoments(2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_rows_are_counted_and_refused(value):
    rows = torch.zeros(5, 3)
    rows[1, 0] = rows[4, 2] = value
    moments = ClassMoments(2, 3)
    with pytest.raises(ValueError, match="2 of 5 rows"):
        moments.update(rows, torch.zeros(5, dtype=torch.long))
    assert moments.total == 0


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range_are_refused(label):
    moments = ClassMoments(2, 3)
    with pytest.raises(ValueError, match=f"label {label}"):
        moments.update(torch.zeros(1, 3), torch.tensor([label]))
    assert moments.total == 0


def test_the_scatter_may_be_read_between_batches():
    problem = random_problem(3, 120, PANEL + 40, 4)
    whole, read = accumulated(problem), accumulated(problem, (40,))
    early = ClassMoments(4, PANEL + 40)
    for part in (slice(0, 40), slice(40, 120)):
        early.update(problem.rows[part], problem.labels[part])
        torch.testing.assert_close(early.within, early.within.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(early.within, whole.within, rtol=1e-6, atol=1e-6)
    assert torch.equal(early.within, read.within)
    both = early.merge(whole)
    torch.testing.assert_close(both.within, both.within.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both.within, 2 * whole.within, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weights"):
        ClassMoments(1, 1).update(
            torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), torch.tensor([1.0, weight])
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, ONE_HOT_CLASSES + 1])
def test_sums_by_class_are_the_same_on_every_device(classes, weighted):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 5, generator=generator)
    position = torch.randint(0, classes, (300,), generator=generator)
    mass = torch.rand(300, generator=generator).double() if weighted else None
    counts = torch.bincount(position, weights=mass, minlength=classes)
    expected = torch.stack(
        [
            ((rows if mass is None else rows * mass[:, None]).double())[position == c].sum(0)
            for c in range(classes)
        ]
    )
    for sums in (_class_sums, _class_products):
        found = sums(rows, position, mass, counts).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
