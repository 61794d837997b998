"""What a pass gathered survives as named tensors, whatever was gathered."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load, save

from compressor.collapse.moments import ClassMoments
from compressor.collapse.state import state_of, statistics_of
from compressor.collapse.token_capture import capture_tokens
from compressor.layers.search import find_candidates
from compressor.tokens import TokenForward
from tests import language
from tests.methods.measured import measured

CPU = torch.device("cpu")


def flat(value):
    """Return nested data with moments as their state."""
    if isinstance(value, ClassMoments):
        return value.state()
    return value


def same(first, second):
    first, second = flat(first), flat(second)
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def fields_of(statistics):
    layers = {name: dict(vars(found)) for name, found in statistics.layers.items()}
    for found in layers.values():
        for part in ("fisher", "loss"):
            found[part] = None if found[part] is None else dict(vars(found[part]))
        if found["fisher"] is not None and found["fisher"]["by_row"] is not None:
            found["fisher"]["by_row"] = vars(found["fisher"]["by_row"])
        found["layer"] = asdict(found["layer"])
    return {**vars(statistics), "layers": layers}


def tokens():
    model = language.build("llama")
    ids = torch.randint(6, 23, (2, 10), generator=torch.Generator().manual_seed(0))
    batches = [({"input_ids": ids}, ids.roll(-1, 1))]
    candidates = find_candidates(model, batches[0][0])
    return candidates, capture_tokens(
        model, batches, candidates, forward=TokenForward(), gradients=True, row_samples=2
    )


@pytest.mark.parametrize("method", ["nc1", "whitened", "fwsvd", "tokens"])
def test_statistics_survive_a_file(method):
    if method == "tokens":
        candidates, found = tokens()
    else:
        candidates, found = measured(method).candidates, measured(method).statistics
    again = statistics_of(load(save(state_of(found))), candidates, CPU)
    assert bool(found.energies) == (method in ("nc1", "tokens"))
    assert same(fields_of(found), fields_of(again))


def test_layers_of_a_group_share_their_moments_again():
    candidates, found = tokens()
    again = statistics_of(state_of(found), candidates, CPU)
    for name, layer in again.layers.items():
        assert layer.inputs is again.layers[candidates.layers[name].group].inputs


def test_other_candidates_are_refused():
    _, found = tokens()
    with pytest.raises(KeyError):
        statistics_of(state_of(found), measured().candidates, CPU)
