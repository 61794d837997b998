"""Every stage in one call."""

from __future__ import annotations

import pytest
import torch

import compressor
from compressor.evaluation.loop import evaluate
from compressor.layers.lowrank import LowRankLinear
from tests.methods.measured import Net, batches, trained


def test_compress_compares_saves_and_loads(tmp_path):
    test = batches(3, seed=9)
    found = compressor.compress(
        trained(), batches(), "layers=50%", test=iter(test), out=tmp_path / "out"
    )
    assert isinstance(found.model.a, LowRankLinear)
    assert found.dense.accuracy == evaluate(trained(), test).accuracy
    assert found.compressed.kl_to_dense == pytest.approx(
        evaluate(found.model, test, dense_logits=found.dense.logits).kl_to_dense
    )
    assert found.compressed.samples == 48
    again = compressor.load(tmp_path / "out", model=Net)
    x = test[0][0]
    with torch.no_grad():
        assert torch.equal(again(x), found.model(x))


def test_without_test_data_nothing_is_evaluated_or_written():
    found = compressor.compress(trained(), batches(), "layers=60%", method="svd")
    assert found.dense is None
    assert found.compressed is None
    assert found.plan.method == "svd"


def test_a_seed_gives_one_model():
    first, again = (
        compressor.compress(trained(), batches(), "layers=40%", seed=3) for _ in range(2)
    )
    assert first.plan.model_dump() == again.plan.model_dump()
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_options_reach_their_stage():
    found = compressor.compress(
        trained(), batches(), "layers=60%", include=["head"], exclude=["a"], rank_multiple=2
    )
    assert set(found.plan.layers) == {"b", "head"}
    assert type(found.model.a) is torch.nn.Linear
    assert not compressor.compress(
        trained(), batches(), "layers=60%", gradients=False
    ).plan.gradients


def test_an_existing_directory_is_not_replaced_unasked(tmp_path):
    compressor.compress(trained(), batches(), "layers=50%", method="svd", out=tmp_path / "out")
    with pytest.raises(compressor.errors.OutputExistsError):
        compressor.compress(trained(), batches(), "layers=50%", method="svd", out=tmp_path / "out")
    compressor.compress(
        trained(), batches(), "layers=50%", method="svd", out=tmp_path / "out", overwrite=True
    )
