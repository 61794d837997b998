from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.checkpoint.storage import cast_state, round_to_storage_, storage_dtype
from compressor.errors import LayerError
from compressor.layers.lowrank import LowRankLinear

HALF = {"0.weight": torch.float16, "1.weight": torch.bfloat16, "1.bias": torch.float32}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LowRankLinear(8, 6, 2, bias=True), nn.Linear(6, 4), nn.BatchNorm1d(4))


def test_factors_and_a_new_bias_inherit_the_weight_they_replace() -> None:
    dtypes = round_to_storage_(net(), HALF)
    assert dtypes["0.weight"] == dtypes["0.down.weight"] == dtypes["0.bias"] == torch.float16
    assert dtypes["1.weight"] == torch.bfloat16
    assert dtypes["1.bias"] == torch.float32
    assert dtypes["2.running_mean"] == torch.float32
    assert dtypes["2.num_batches_tracked"] == torch.int64


def test_rounding_is_in_place_and_what_a_cast_gives() -> None:
    module, original = net(), net()
    pointer = module[1].weight.data_ptr()
    round_to_storage_(module, HALF)
    assert module[1].weight.data_ptr() == pointer
    assert module[1].weight.dtype == torch.float32
    assert torch.equal(module[1].weight, original[1].weight.bfloat16().float())
    assert torch.equal(module[0].down.weight, original[0].down.weight.half().float())
    assert not torch.equal(module[0].weight, original[0].weight)
    assert torch.equal(module[1].bias, original[1].bias)


def test_rounding_twice_changes_nothing_and_the_cast_is_then_exact() -> None:
    module = net()
    round_to_storage_(module, HALF)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    round_to_storage_(module, HALF)
    stored = cast_state(module, HALF)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert torch.equal(stored[key].to(tensor.dtype), tensor)


def test_overflow_names_the_layer_and_leaves_the_module_alone() -> None:
    module = net()
    with torch.no_grad():
        module[0].down.weight[0, 0] = 1e6
    before = module[0].weight.clone()
    with pytest.raises(
        LayerError, match=r"Layer 0\.down: weight holds 1e\+06.*6\.55e\+04"
    ) as caught:
        round_to_storage_(module, HALF)
    assert caught.value.layer == "0.down"
    assert torch.equal(module[0].weight, before)


def test_tensors_stay_shared() -> None:
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    state = cast_state(tied, {"a.weight": torch.float16, "b.weight": torch.float16})
    assert state["a.weight"] is state["b.weight"]
    assert state["a.bias"] is not state["b.bias"]


def test_unknown_names_keep_their_type() -> None:
    assert storage_dtype("x.weight", torch.zeros(1).double(), HALF) == torch.float64
    assert storage_dtype("0.count", torch.zeros(1, dtype=torch.int32), HALF) == torch.int32
