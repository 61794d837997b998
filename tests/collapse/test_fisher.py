"""The Kronecker Fisher against explicit per-sample gradients from autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.collapse.capture import TEMPERATURE, fisher_gradient
from compressor.collapse.fisher import FisherMoments
from compressor.collapse.gradient_terms import Terms, through_positions, through_weights

CPU = torch.device("cpu")


def explicit(weight, inputs, gradients):
    """Return E[GGᵀ], E[GᵀG], E‖G‖² and E Σ_t δ², with G_i taken by autograd."""
    outputs, inner, energy = 0.0, 0.0, 0.0
    for rows, deltas in zip(inputs, gradients, strict=True):
        free = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((rows @ free.T * deltas).sum(), free)
        outputs = outputs + gradient @ gradient.T
        inner = inner + gradient.T @ gradient
        energy += float(gradient.square().sum())
    samples = len(inputs)
    return outputs / samples, inner / samples, energy / samples, gradients.square().sum((0, 1))


def problem(seed, samples, positions, m, n):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return draw(m, n), draw(samples, positions, n), draw(samples, positions, m)


@given(
    st.integers(0, 999),
    st.integers(1, 5),
    st.integers(1, 9),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([1.0, 1e-3, 40.0]),
)
@settings(max_examples=80, deadline=None)
def test_is_the_explicit_one(seed, samples, positions, shape, scale):
    m, n = shape
    weight, inputs, gradients = problem(seed, samples, positions, m, n)
    moments = FisherMoments(weight, torch.zeros(n).double(), home=CPU, whole=True)
    half = samples // 2
    for part in (slice(0, half), slice(half, None)):
        if len(inputs[part]):
            moments.update(inputs[part], gradients[part] / scale, scale=scale)
    found = moments.result()
    outputs, inner, energy, rows = explicit(weight, inputs, gradients)
    if m <= n:
        near, pulled = outputs, weight @ inner @ weight.T
    else:
        near, pulled = inner, weight.T @ outputs @ weight
    torch.testing.assert_close(found.near, near)
    torch.testing.assert_close(found.pulled, pulled)
    assert found.energy == pytest.approx(energy)
    assert found.energy == pytest.approx(float(found.near.trace()))
    torch.testing.assert_close(found.rows, rows / samples)
    torch.testing.assert_close(found.far, inner if m <= n else outputs)
    if positions > 1:  # every row a sample of its own
        single = (part.flatten(0, 1)[:, None] for part in (inputs, gradients))
        outputs, inner, *_ = explicit(weight, *single)
        torch.testing.assert_close(found.by_row.far, positions * (inner if m <= n else outputs))


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4)])
def test_both_ways_of_counting_agree(m, n):
    weight, inputs, gradients = problem(0, 3, 5, m, n)
    terms = Terms.of(inputs, gradients)
    *few, energy = through_positions(terms, weight, terms.pulled(weight))
    *many, again = through_weights(terms, weight)
    torch.testing.assert_close(energy, again)
    for first, second in zip(few, many, strict=True):
        torch.testing.assert_close(first[0].T @ first[1], second[0].T @ second[1])


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4)])
@pytest.mark.parametrize("positions", [3, 9])
def test_rows_without_a_gradient_are_not_multiplied(m, n, positions):
    weight, inputs, gradients = problem(0, 3, positions, m, n)
    there = torch.zeros(3, positions, dtype=torch.bool)
    there[0, 1] = there[2, 0] = there[2, -1] = positions > 3
    there[1, 2] = True
    gradients *= there[..., None]
    terms = Terms.of(inputs, gradients, inputs @ weight.T)
    assert terms.positions == (2 if positions > 3 else 1)
    moments = FisherMoments(weight, torch.zeros(n).double(), home=CPU)
    moments.update(inputs, gradients)
    found = moments.result()
    outputs, inner, energy, rows = explicit(weight, inputs, gradients)
    near, pulled = (
        (outputs, weight @ inner @ weight.T) if m <= n else (inner, weight.T @ outputs @ weight)
    )
    torch.testing.assert_close(found.near, near)
    torch.testing.assert_close(found.pulled, pulled)
    torch.testing.assert_close(found.rows, rows / 3)
    assert found.energy == pytest.approx(energy)
    single = (part.flatten(0, 1)[:, None] for part in (inputs, gradients))
    outputs, inner, *_ = explicit(weight, *single)
    torch.testing.assert_close(found.by_row.near, positions * (outputs if m <= n else inner))


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4), (2, 3)])
def test_rows_that_are_left_out_hold_no_more_than_their_share(m, n):
    weight, inputs, gradients = problem(0, 20, 5, m, n)
    gradients *= torch.logspace(0, -4, 100).reshape(20, 5, 1)
    whole, some = (
        FisherMoments(weight, torch.zeros(n).double(), home=CPU, whole=True, left_out=share)
        for share in (0.0, 0.05)
    )
    whole.update(inputs, gradients)
    some.update(inputs, gradients)
    exact, found = whole.result(), some.result()
    torch.testing.assert_close(found.near, exact.near)  # of whole samples nothing is left out
    sizes = (inputs.norm(dim=2) * gradients.norm(dim=2)).square().flatten()
    order = sizes.argsort(descending=True)
    count = int((sizes[order].cumsum(0) < 0.95 * sizes.sum()).sum()) + 1
    assert count < 50
    taken = order[:count]
    assert found.by_row.energy == pytest.approx(float(sizes[taken].sum()) / 20)
    assert 0.95 <= found.by_row.energy / exact.by_row.energy < 1
    single = (part.flatten(0, 1)[taken][:, None] for part in (inputs, gradients))
    outputs, inner, *_ = explicit(weight, *single)
    near, far = (outputs, inner) if m <= n else (inner, outputs)
    torch.testing.assert_close(found.by_row.near, near * count / 20)
    torch.testing.assert_close(found.by_row.far, far * count / 20)
    seen = weight @ far @ weight.T if m <= n else weight.T @ far @ weight
    torch.testing.assert_close(found.by_row.pulled, seen * count / 20)


@pytest.mark.parametrize("positions", [1, 5, 300])
@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4), (200, 200)])
def test_what_is_given_spares_a_product_and_changes_nothing(m, n, positions):
    weight, inputs, gradients = problem(0, 3, positions, m, n)
    bias, centre = gradients[0, 0].clone(), inputs[0, 0].clone()
    plain, given = (FisherMoments(weight, centre, bias=bias, home=CPU) for _ in range(2))
    assert plain.takes_outputs == (m <= n)
    outputs = inputs @ weight.T + bias - plain.output_at_centre
    centred = inputs - centre
    plain.update(centred, gradients)
    given.update(centred, gradients, outputs if m <= n else gradients @ weight)
    torch.testing.assert_close(given.result().near, plain.result().near)
    torch.testing.assert_close(given.result().pulled, plain.result().pulled)


def test_rows_that_are_zero_do_not_count():
    weight, inputs, gradients = problem(0, 3, 5, 4, 6)
    inputs[:, 3:] = 0
    whole, cut = (FisherMoments(weight, torch.zeros(6).double(), home=CPU) for _ in range(2))
    whole.update(inputs, gradients)
    cut.update(inputs[:, :3], gradients[:, :3])
    torch.testing.assert_close(whole.result().near, cut.result().near)
    torch.testing.assert_close(whole.result().pulled, cut.result().pulled)


def test_gradients_that_are_not_finite_are_refused_and_not_added():
    weight, inputs, gradients = problem(0, 3, 2, 4, 6)
    moments = FisherMoments(weight, torch.zeros(6).double(), home=CPU)
    moments.update(inputs, gradients)
    before = moments.result().near.clone()
    gradients[1, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or Inf"):
        moments.update(inputs, gradients)
    torch.testing.assert_close(moments.result().near, before)


def test_nothing_seen_is_zero():
    found = FisherMoments(torch.ones(2, 3), torch.zeros(3), home=CPU).result()
    assert found.energy == 0
    assert not found.near.any()


@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3)])
def test_rows_are_taken_for_samples_of_their_own(m, n):
    weight, inputs, gradients = problem(0, samples=4, positions=6, m=m, n=n)
    moments = FisherMoments(weight, torch.zeros(n).double(), home=CPU)
    moments.update(inputs[:3], gradients[:3] / 2, scale=2.0)
    moments.update(inputs[3:], gradients[3:])
    found = moments.result().by_row
    rows = [part.flatten(0, 1)[:, None] for part in (inputs, gradients)]
    outputs, inner, energy, _ = explicit(weight, *rows)
    # Means over the 4 samples, of which each has 6 rows.
    near, far = (outputs, inner) if m <= n else (inner, outputs)
    pulled = weight @ far @ weight.T if m <= n else weight.T @ far @ weight
    torch.testing.assert_close(found.near, 6 * near)
    torch.testing.assert_close(found.pulled, 6 * pulled)
    assert found.energy == pytest.approx(6 * energy)
    assert found.energy == pytest.approx(float(found.near.trace()))


def test_single_rows_have_no_factors_of_their_own():
    weight, inputs, gradients = problem(0, samples=4, positions=1, m=3, n=5)
    moments = FisherMoments(weight, torch.zeros(5).double(), home=CPU)
    moments.update(inputs, gradients)
    assert moments.result().by_row is None


def test_random_signs_have_the_fishers_covariance():
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]])
    p = (logits.double() / TEMPERATURE).softmax(1)[0]
    many = fisher_gradient(logits.expand(200_000, 4), torch.Generator().manual_seed(0)).double()
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(many.T @ many / len(many), expected, rtol=0, atol=3e-3)
    torch.testing.assert_close(many.mean(0), torch.zeros(4).double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(many.sum(1), torch.zeros(len(many)).double(), rtol=0, atol=1e-5)


def test_random_signs_have_the_fishers_covariance_exactly_over_all_signs():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    u = p.sqrt() * signs - p * (p.sqrt() * signs).sum(1, keepdim=True)
    torch.testing.assert_close(u.T @ u / len(u), torch.diag(p) - torch.outer(p, p))
