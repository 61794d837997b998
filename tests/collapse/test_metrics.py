import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressor.collapse import metrics as metrics_module
from compressor.collapse.metrics import (
    Collapse,
    cdnv,
    collapse,
    energy_bound,
    nc1,
    nc1_quotient,
    nearest_mean_mismatch,
)
from compressor.collapse.moments import ClassMoments

from .naive import naive, problems, random_problem


def moments_of(rows, labels, classes=None, *, scatter=True):
    rows, labels = torch.as_tensor(rows), torch.as_tensor(labels)
    classes = int(labels.max()) + 1 if classes is None else classes
    moments = ClassMoments(classes, rows.shape[1], scatter=scatter)
    moments.update(rows, labels)
    return moments


def of(problem):
    return moments_of(problem.rows, problem.labels, problem.classes)


def naive_cdnv(expected):
    values = []
    for i, j in combinations(np.flatnonzero(expected.counts), 2):
        variances = (
            expected.traces[i] / expected.counts[i] + expected.traces[j] / expected.counts[j]
        )
        values.append(variances / (2 * ((expected.means[i] - expected.means[j]) ** 2).sum()))
    return np.mean(values)


@settings(max_examples=80, deadline=None)
@given(problems())
def test_every_metric_is_its_definition(problem):
    rows, labels = problem.wide
    expected = naive(rows, labels, problem.classes)
    seen = int((expected.counts > 0).sum())
    assume(seen > 1)
    found = collapse(of(problem))
    within, between = np.trace(expected.within), np.trace(expected.between)
    close = {"rel": 1e-4 if problem.rows.dtype == torch.float32 else 1e-7, "abs": 1e-9}
    assert found.classes == seen
    assert found.nc1_quotient == pytest.approx(within / between, **close)
    assert found.tcv == pytest.approx(within, **close)
    assert found.tcv_relative == pytest.approx(within / (within + between), **close)
    assert found.cdnv == pytest.approx(naive_cdnv(expected), **close)
    spectrum = np.linalg.eigvalsh(expected.between)
    kept = spectrum > 1e-6 * spectrum[-1]
    assume(not ((spectrum > 1e-7 * spectrum[-1]) & (spectrum < 1e-5 * spectrum[-1])).any())
    inverse = np.linalg.pinv(expected.between, rcond=1e-6, hermitian=True)
    assert found.nc1_kept == kept.sum() <= min(seen - 1, rows.shape[1])
    assert found.nc1 == pytest.approx(np.trace(expected.within @ inverse) / seen, **close)


def test_nc1_of_many_more_dimensions_than_classes():
    problem = random_problem(0, 300, 200, 4, offset=1e3)
    rows, labels = problem.wide
    expected = naive(rows, labels, 4)
    inverse = np.linalg.pinv(expected.between, rcond=1e-8, hermitian=True)
    seen = (expected.counts > 0).sum()
    moments = of(problem)
    value, kept = nc1(moments, moments.within_covariance)
    assert value == pytest.approx(np.trace(expected.within @ inverse) / seen, rel=1e-8)
    assert kept == seen - 1


def test_class_means_on_a_line_keep_one_direction():
    labels = torch.arange(300) % 3
    rows = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for label in range(3):  # means exactly at 0, 1 and 2 along the first axis
        rows[labels == label] -= rows[labels == label].mean(0)
        rows[labels == label, 0] += label
    moments = moments_of(rows, labels)
    value, kept = nc1(moments, moments.within_covariance)
    assert kept == 1
    assert value == pytest.approx(float(moments.within_covariance[0, 0]) / (2 / 3) / 3)


def test_an_output_is_measured_from_its_own_moments_and_the_mapped_scatter():
    problem = random_problem(1, 80, 7, 4)
    weight = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs, outputs = of(problem), problem.rows @ weight.T + 3.0
    lean = moments_of(outputs, problem.labels, 4, scatter=False)
    found = collapse(lean, weight @ inputs.within_covariance @ weight.T)
    whole = collapse(moments_of(outputs, problem.labels, 4))
    assert found.nc1_kept == whole.nc1_kept
    for name in ("nc1_quotient", "nc1", "cdnv", "tcv", "tcv_relative"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    assert collapse(lean).nc1 is None


def test_the_paper_figures_of_two_point_classes():
    # Classes {0, 2} and {10, 12}: variance 1 each, means 1 and 11.
    moments = moments_of(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
    assert collapse(moments) == Collapse(
        nc1_quotient=pytest.approx(1 / 25),
        nc1=pytest.approx(1 / 25 / 2),
        nc1_kept=1,
        cdnv=pytest.approx(1 / 100),
        tcv=pytest.approx(1),
        tcv_relative=pytest.approx(1 / 26),
        classes=2,
    )


def test_one_class_alone_has_variation_and_nothing_to_compare():
    found = collapse(moments_of(torch.tensor([[0.0], [2.0]]), torch.tensor([1, 1]), 3))
    assert found == Collapse(None, None, 0, None, 1.0, 1.0, 1)


def test_nothing_seen():
    assert collapse(ClassMoments(3, 2)) == Collapse(None, None, 0, None, 0.0, None, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_one_sample_a_class_is_full_collapse(dtype, offset):
    rows = (torch.eye(4, 6, dtype=torch.float64) + offset).to(dtype)
    found = collapse(moments_of(rows, torch.arange(4)))
    assert found == Collapse(0.0, 0.0, 3, 0.0, 0.0, 0.0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3])
def test_rows_that_are_all_the_same_have_no_figures(value, dtype):
    found = collapse(moments_of(torch.full((31, 5), value, dtype=dtype), torch.arange(31) % 3))
    assert found.nc1_quotient is None
    assert found.nc1 is None
    assert found.cdnv is None
    assert found.tcv_relative is None
    assert found.tcv == pytest.approx(0, abs=1e-18)


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e3])
def test_coinciding_means_are_no_collapse_at_all(offset):
    rows = torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64).repeat(3, 1) + offset
    found = collapse(moments_of(rows, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert found.nc1_quotient == math.inf
    assert found.nc1 is None
    assert found.cdnv == math.inf
    assert found.tcv_relative == pytest.approx(1)


def test_two_coinciding_means_among_others_make_cdnv_infinite_only():
    rows = torch.tensor([[0.0], [2.0], [0.5], [1.5], [9.0], [9.0]], dtype=torch.float64)
    found = collapse(moments_of(rows, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert found.cdnv == math.inf
    assert math.isfinite(found.nc1_quotient)
    assert math.isfinite(found.nc1)


@given(problems(), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_ratios_do_not_depend_on_scale_nor_offset(problem, scale):
    moments = moments_of(problem.rows.double(), problem.labels, problem.classes)
    scaled = moments_of(problem.rows.double() * scale + 7, problem.labels, problem.classes)
    one, other = collapse(moments), collapse(scaled)
    for name in ("nc1_quotient", "cdnv", "tcv_relative"):
        expected = getattr(one, name)
        found = getattr(other, name)
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-9))


def test_cdnv_of_close_means_keeps_its_digits_and_blocks_do_not_show(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    means[11] = means[3] + 1e-7
    moments = ClassMoments(20, 6)
    moments.counts += 2
    moments.means = means + 100
    moments.traces += torch.rand(20, dtype=torch.float64, generator=generator) * 1e-6
    expected = naive_cdnv(
        naive(np.zeros((1, 6)), np.zeros(1, dtype=int), 20).__class__(
            moments.counts.numpy(), moments.means.numpy(), moments.traces.numpy(), *[None] * 4
        )
    )
    assert cdnv(moments) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(metrics_module, "PAIR_ROWS", 3)
    assert cdnv(moments) == pytest.approx(expected, rel=1e-9)


def test_cdnv_of_a_thousand_classes_holds_no_cubic_array():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2000, 64, generator=generator)
    labels = torch.arange(2000) % 1000
    moments = moments_of(rows, labels)
    expected = 0.0
    variances = moments.traces / moments.counts
    for i in range(1000):
        distances = (moments.means[i] - moments.means[i + 1 :]).square().sum(1)
        expected += float(((variances[i] + variances[i + 1 :]) / 2 / distances).sum())
    assert cdnv(moments) == pytest.approx(expected / (1000 * 999 / 2), rel=1e-10)


def test_nearest_mean_mismatch_by_hand():
    pooled = torch.tensor([[0.0], [1.0], [9.0], [10.0], [6.0]]) + 1e3
    labels = torch.tensor([0, 0, 3, 3, 0])  # means 7/3 and 9.5: the last sample lies near class 3
    assert nearest_mean_mismatch(pooled, labels, torch.tensor([0, 0, 3, 3, 3])) == 0
    assert nearest_mean_mismatch(pooled, labels, torch.tensor([0, 0, 3, 3, 0])) == pytest.approx(
        0.2
    )
    assert nearest_mean_mismatch(pooled, labels, torch.tensor([1, 1, 1, 1, 1])) == 1


@given(problems())
@settings(max_examples=30, deadline=None)
def test_nearest_mean_mismatch_is_its_definition(problem):
    rows, labels = problem.wide
    means = {c: rows[labels == c].mean(0) for c in np.unique(labels)}
    nearest = []
    for row in rows:
        distances = sorted((((row - mean) ** 2).sum(), c) for c, mean in means.items())
        assume(len(distances) < 2 or distances[1][0] - distances[0][0] > 1e-6)  # no ties
        nearest.append(distances[0][1])
    predictions = (labels + np.arange(len(labels)) % 2) % problem.classes
    found = nearest_mean_mismatch(problem.rows, problem.labels, torch.from_numpy(predictions))
    assert found == pytest.approx(np.mean(np.array(nearest) != predictions))


def test_nearest_mean_of_nothing_is_refused():
    empty = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="no sample"):
        nearest_mean_mismatch(torch.zeros(0, 2), empty, empty)


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(1, 10), st.integers(0, 1000))
def test_the_bound_is_never_below_what_the_best_truncation_loses(problem, outputs, seed):
    moments = moments_of(problem.rows.double(), problem.labels, problem.classes)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, problem.rows.shape[1], dtype=torch.float64, generator=generator)
    within, between, total = (
        weight @ covariance @ weight.T
        for covariance in (
            moments.within_covariance,
            moments.between_covariance,
            moments.total_covariance,
        )
    )
    energy = float(total.trace())
    assume(energy > 1e-9)
    eigenvalues = [torch.linalg.eigvalsh(matrix) for matrix in (within, between)]
    spectrum = torch.linalg.eigvalsh(total).clamp_min(0).flip(0)
    last = 1.0
    for rank in range(outputs + 1):
        bound = energy_bound(*eigenvalues, rank)
        assert bound >= float(spectrum[rank:].sum()) / energy - 1e-9
        assert bound <= last + 1e-12
        last = bound
    assert last == pytest.approx(0, abs=1e-9)


def test_the_bound_at_classes_less_one_is_that_of_the_quotient_or_better():
    problem = random_problem(4, 500, 10, 4)
    moments = of(problem)
    quotient = nc1_quotient(moments)
    eigenvalues = [
        torch.linalg.eigvalsh(moments.within_covariance),
        torch.linalg.eigvalsh(moments.between_covariance),
    ]
    assert energy_bound(*eigenvalues, 3) <= quotient / (1 + quotient) + 1e-12


def test_the_bound_by_hand():
    within = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    between = torch.tensor([0.0, 14.0, 0.0], dtype=torch.float64)
    shares = [energy_bound(within, between, rank) for rank in range(5)]  # at 3, everything is kept
    assert shares == pytest.approx([1.0, 6 / 20, 3 / 20, 0.0, 0.0])
    # Slightly negative eigenvalues are rounding of zero.
    assert energy_bound(within - 1e-12, between - 1e-12, 1) == pytest.approx(6 / 20)


def test_no_energy_has_no_bound():
    assert energy_bound(torch.zeros(3), torch.zeros(3), 1) is None
