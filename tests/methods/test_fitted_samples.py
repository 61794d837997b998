"""Which samples a refit runs on."""

from __future__ import annotations

import torch

from compressor.collapse.row_energy import BatchEnergies
from compressor.methods.fitted_samples import fitted_samples


def batch(*rows, mask=None, calls=1):
    """A batch of samples whose rows have these weights, in two layers."""
    weights = torch.tensor(rows, dtype=torch.float64)
    return BatchEnergies(
        len(rows), mask, {"a": [weights] * calls, "b": [weights.flip(1) * 5] * calls}
    )


def indices(found):
    return [None if index is None else index.tolist() for index in found]


def test_the_fewest_samples_that_hold_all_but_a_share():
    given = [batch([1.0, 3.0], [0.02, 0.0], [5.0, 1.0]), batch([0.0, 0.03], [2.0, 2.0])]
    assert indices(fitted_samples(given, ["a", "b"], 0.0)) == [None, None]
    assert indices(fitted_samples(given, ["a", "b"], 0.001)) == [None, None]
    assert indices(fitted_samples(given, ["a", "b"], 0.01)) == [[0, 2], [1]]
    assert indices(fitted_samples(given, ["a", "b"], 0.5)) == [[0, 2], []]


def test_layers_count_alike_whatever_their_gradients():
    first = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    given = [BatchEnergies(2, None, {"a": [1e9 * first], "b": [first.flip(0)]})]
    assert indices(fitted_samples(given, ["a", "b"], 0.4)) == [None]
    assert indices(fitted_samples(given, ["a"], 0.4)) == [[0]]


def test_padding_and_every_call_count():
    mask = torch.tensor([[1, 0], [1, 1]])
    padded = BatchEnergies(2, mask, {"a": [torch.tensor([[0.0, 9.0], [1.0, 1.0]]).double()]})
    assert indices(fitted_samples([padded], ["a"], 0.01)) == [[1]]
    late = torch.tensor([[0.0], [4.0]]).double()
    called = BatchEnergies(2, None, {"a": [late.flip(0) / 400, late]})
    assert indices(fitted_samples([called], ["a"], 0.002)) == [None]
    assert indices(fitted_samples([called], ["a"], 0.003)) == [[1]]


def test_where_nothing_weighs_anything_all_are_taken():
    assert indices(fitted_samples([batch([0.0, 0.0], [0.0, 0.0])], ["a"], 0.01)) == [None]


def test_energies_of_some_samples_are_theirs():
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    whole = batch([1.0, 2.0], [3.0, 4.0], [5.0, 6.0], mask=mask, calls=2)
    some = whole.of(torch.tensor([0, 2]))
    assert some.samples == 2
    assert some.mask.tolist() == [[1, 1], [1, 1]]
    assert [call.tolist() for call in some.energies["a"]] == [[[1.0, 2.0], [5.0, 6.0]]] * 2
    assert whole.of(None) is whole
    assert whole.real("a")[1].tolist() == [[1.0, 2.0], [3.0, 0.0], [5.0, 6.0]]
