from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.models.loading import load_exactly


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_loads_every_tensor() -> None:
    source, target = net(), net()
    assert load_exactly(target, source.state_dict(), where="f") == ()
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


def test_names_missing_and_unexpected_keys() -> None:
    state = net().state_dict()
    state["new"] = state.pop("2.bias")
    with pytest.raises(ModelError, match=r"f lacks 1 .*\(2\.bias\) and has 1 .*\(new\)"):
        load_exactly(net(), state, where="f")


def test_another_width_of_the_classifier_is_told_as_such() -> None:
    state = net().state_dict() | {"2.weight": torch.zeros(7, 4)}
    with pytest.raises(ModelError, match=r"2\.weight is \[7, 4\].*expects \[2, 4\].*7 classes"):
        load_exactly(net(), state, where="f")


def test_foreign_names_pair_by_position_only_when_asked() -> None:
    source, target = net(), net()
    foreign = {f"x{index}": value for index, value in enumerate(source.state_dict().values())}
    with pytest.raises(ModelError, match="lacks 9"):
        load_exactly(net(), foreign, where="f")
    (note,) = load_exactly(target, foreign, where="f", by_position=True)
    assert "paired by position" in note
    assert torch.equal(source[2].weight, target[2].weight)


def test_position_never_overrides_names_or_shapes() -> None:
    state = list(net().state_dict().items())
    swapped = {state[1][0]: state[0][1], "other": state[1][1], **dict(state[2:])}
    with pytest.raises(ModelError):
        load_exactly(net(), swapped, where="f", by_position=True)
    foreign = {f"x{index}": value for index, (_, value) in enumerate(state)}
    foreign["x0"] = torch.zeros(4, 5)
    with pytest.raises(ModelError):
        load_exactly(net(), foreign, where="f", by_position=True)


def test_a_shared_tensor_is_filled_from_its_other_name() -> None:
    source, target = Tied(), Tied()
    load_exactly(target, {"embed.weight": source.embed.weight.detach()}, where="f")
    assert torch.equal(target.head.weight, source.embed.weight)


def test_old_files_without_batch_counters_load() -> None:
    state = {key: v for key, v in net().state_dict().items() if "num_batches" not in key}
    load_exactly(net(), state, where="f")
