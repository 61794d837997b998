"""Every method on every family of models: within budget, never larger, repeatable, saved whole."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from compressor.checkpoint.load import load
from compressor.forward import Batch, call, logits_of
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS
from compressor.methods.metrics import Needs
from compressor.methods.plan import Plan
from compressor.models import describe
from compressor.saving import save
from compressor.stages import factorize, measure, plan
from tests.contract.small_models import MODELS, build

FAMILIES = {"bert": 3, "timm-vit": 7, "cnn": 5, "gpt2": 3}
"""Small models by name, with their number of classes."""

BUDGET = 0.6


def batches_for(family: str) -> list[Batch]:
    """Return five batches of inputs with labels; padded ones for text."""
    generator = torch.Generator().manual_seed(0)
    made: list[Batch] = []
    for _ in range(5):
        labels = torch.arange(8) % FAMILIES[family]
        if family in ("bert", "gpt2"):
            ids = torch.randint(1, 100, (8, 10), generator=generator)
            mask = (
                torch.arange(10)[None] < torch.randint(4, 11, (8, 1), generator=generator)
            ).long()
            made.append(({"input_ids": ids * mask, "attention_mask": mask}, labels))
        else:
            size = 16 if family == "cnn" else 32
            made.append((torch.randn(8, 3, size, size, generator=generator), labels))
    return made


@cache
def dense(family: str) -> nn.Module:
    return build(family)


@cache
def measured(family: str, method: str) -> Measurement:
    model = dense(family)
    given = batches_for(family)
    return measure(model, given, method=method, heads=describe(model).heads)


@cache
def compressed(family: str, method: str) -> tuple[Plan, nn.Module]:
    made = plan(measured(family, method), f"layers={BUDGET}", method=method)
    return made, factorize(dense(family), made)


@pytest.mark.parametrize("method", METHODS.names())
def test_name_and_source(method: str) -> None:
    member = METHODS.get(method)
    assert member.name == method
    assert len(member.source) > 10
    assert {member.needs(gradients=allowed) for allowed in (False, True)} <= set(get_args(Needs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS.names())
def test_within_budget_and_never_larger(method: str, family: str) -> None:
    found, model = measured(family, method), dense(family)
    made, small = compressed(family, method)
    assert made.ranks.keys() == found.candidates.layers.keys()
    assert all(1 <= r <= found.candidates.layers[n].full_rank for n, r in made.ranks.items())
    kept = dict(small.named_modules())
    factorized = 0
    weights = 0
    for name, layer in found.candidates.layers.items():
        module = kept[name]
        size = sum(p.numel() for key, p in module.named_parameters() if key.endswith("weight"))
        assert size <= layer.parameters
        assert (size < layer.parameters) == isinstance(module, LOW_RANK_TYPES)
        factorized += isinstance(module, LOW_RANK_TYPES)
        weights += size
    assert factorized
    assert weights <= BUDGET * found.candidates.layer_parameters
    saved = found.candidates.layer_parameters - weights
    total = sum(p.numel() for p in small.parameters())
    assert total == sum(p.numel() for p in model.parameters()) - saved
    inputs, _ = found.calibration[0]
    with torch.no_grad():
        assert torch.isfinite(logits_of(call(small, inputs))).all()


@pytest.mark.parametrize("family", ["gpt2", "cnn"])
@pytest.mark.parametrize("method", METHODS.names())
def test_seed_decides_everything(method: str, family: str) -> None:
    model = dense(family)
    made, small = compressed(family, method)
    given = batches_for(family)
    found = measure(model, given, method=method, heads=describe(model).heads)
    again = plan(found, f"layers={BUDGET}", method=method)
    assert again.model_dump() == made.model_dump()
    first, second = small.state_dict(), factorize(model, again).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("method", METHODS.names())
def test_rank_multiple(method: str) -> None:
    found = measured("bert", method)
    made = plan(found, "layers=50%", method=method, rank_multiple=4)
    small = factorize(dense("bert"), made)
    ranks = [module.rank for module in small.modules() if isinstance(module, LOW_RANK_TYPES)]
    assert ranks
    assert all(rank % 4 == 0 for rank in ranks)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS.names())
def test_saves_and_loads(method: str, family: str, tmp_path: Path) -> None:
    found = measured(family, method)
    small = compressed(family, method)[1]
    save(small, tmp_path / "out")
    again = load(tmp_path / "out", model=MODELS[family][0] if family == "cnn" else None)
    inputs, _ = found.calibration[0]
    with torch.no_grad():
        assert torch.equal(logits_of(call(again, inputs)), logits_of(call(small, inputs)))
