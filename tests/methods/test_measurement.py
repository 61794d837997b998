"""What is known before ranks are chosen, and how choices are judged."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from compressor.evaluation.loop import evaluate, kl_divergence
from compressor.forward import default_device
from compressor.methods.measurement import Measurement, hold_out
from compressor.methods.recipe import Recipe
from compressor.methods.refit import BLOCKWISE_ACTIVATIONS, refitted
from compressor.stages import measure
from tests import language
from tests.collapse.test_token_capture import batches as windows
from tests.contract.small_models import build
from tests.methods.measured import measured, trained


@pytest.mark.parametrize("count", range(1, 10))
def test_every_fourth_batch_is_held_out(count):
    rest, held = hold_out((object(), None) for _ in range(count))
    assert len(rest) + len(held or []) == count
    assert (held is None) == (count < 4)
    assert len(held or []) == count // 4
    assert not {id(x) for x, _ in rest} & {id(x) for x, _ in held or []}


def test_statistics_never_saw_the_selection_data():
    found = measured()
    seen = torch.cat([labels for _, labels in found.calibration])
    assert torch.equal(found.statistics.labels, seen)
    assert len(seen) == 6 * 16
    assert sum(len(labels) for _, labels in found.selection) == 2 * 16


def test_judged_by_kl_on_the_selection_data():
    found = measured()
    made, recipe = found.factorized({"a": 3, "b": 3}, Recipe())
    assert recipe.norm_correction is False  # there is no BatchNorm
    dense, small = (evaluate(model, found.selection) for model in (trained(), made))
    assert found.divergence(made) == pytest.approx(kl_divergence(dense.logits, small.logits))
    assert found.divergence(trained()) == 0.0
    assert found.judge(made).accuracy == small.accuracy


def cnn_measurement(selection: bool) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 5)
        for _ in range(4 if selection else 3)
    ]
    return measure(build("cnn"), batches, method="whitened")


def test_norm_correction_is_chosen_on_selection_data():
    found = cnn_measurement(selection=True)
    ranks = {"first": 3, "second": 4}
    made, recipe = found.factorized(ranks, Recipe())
    plain, off = found.factorized(ranks, Recipe(norm_correction=False))
    corrected, on = found.factorized(ranks, Recipe(norm_correction=True))
    assert (off.norm_correction, on.norm_correction) == (False, True)
    assert torch.equal(plain.norm.running_mean, found.model.norm.running_mean)
    assert not torch.equal(corrected.norm.running_mean, found.model.norm.running_mean)
    best = min(found.divergence(plain), found.divergence(corrected))
    assert found.divergence(made) == best
    assert recipe.norm_correction == (found.divergence(corrected) <= found.divergence(plain))


def test_norms_are_corrected_where_nothing_can_judge():
    found = cnn_measurement(selection=False)
    assert found.selection is None
    assert found.factorized({"second": 4}, Recipe())[1].norm_correction is True
    with pytest.raises(ValueError, match="no selection data"):
        found.judge(found.model)


def test_default_device():
    assert default_device(torch.nn.ReLU()) == torch.device("cpu")
    assert default_device(torch.nn.Linear(2, 2, device="meta")).type == "meta"


@pytest.mark.parametrize("blockwise", [False, True])
def test_block_by_block_a_refit_has_little_room(blockwise, monkeypatch):
    model, given = language.build("llama"), windows()
    found = measure(model, given, selection=given[:1], blockwise=blockwise)
    rooms = []

    def noted(*args, activations, **asked):
        rooms.append(activations)
        return refitted(*args, activations=activations, **asked)

    monkeypatch.setattr("compressor.methods.measurement.refitted", noted)
    recipe = Recipe(metric="shrunk_fisher", refit=0.2)
    ranks = dict.fromkeys(found.candidates.layers, 3)
    found.factorized(ranks, recipe)
    assert rooms == [BLOCKWISE_ACTIVATIONS if blockwise else None]


def test_a_refit_begins_with_the_model_that_is_kept(monkeypatch):
    found, ranks = dataclasses.replace(measured(), _kept={}), {"a": 3, "b": 3}
    plain, settled = found.factorized(ranks, Recipe())
    refit = settled.model_copy(update={"refit": 0.2})
    expected = found.factorized(ranks, refit)[0].state_dict()
    found.keep(ranks, settled, plain)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    monkeypatch.setattr("compressor.methods.measurement.factorized", None)
    fitted = found.factorized(ranks, refit)[0].state_dict()
    assert all(torch.equal(fitted[name], tensor) for name, tensor in expected.items())
    assert found.factorized(ranks, settled)[0] is plain
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.items())
