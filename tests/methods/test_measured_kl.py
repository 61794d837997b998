"""Ranks by measured shares of the KL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compressor.errors import UsageError
from compressor.methods.constraints import weights_within
from compressor.methods.measured_kl import START, MeasuredKl
from compressor.methods.sharing import allocate
from compressor.progress import SILENT
from compressor.tokens import TokenForward
from tests.methods.measured import measured

WEIGHTS = (24 * 40 + 40 * 32) // 2


def test_weights_go_where_the_measured_share_exceeds_the_predicted_loss(monkeypatch):
    found = measured()
    limits = weights_within(found.candidates.layers, WEIGHTS)
    predicted = allocate(found, START, limits, multiple=1)
    tails = {name: found.decompositions.get(name, START).decomposition.tail() for name in predicted}

    def shares(*args, **kwargs):
        return {
            name: (9 if name == "b" else 1) * float(tails[name][r] + 1e-9)
            for name, r in predicted.items()
        }

    monkeypatch.setattr("compressor.methods.measurement.attributed_divergence", shares)
    decision = MeasuredKl().decide(found, limits, multiple=1, progress=SILENT)
    assert decision.ranks["b"] > predicted["b"]
    assert decision.recipe.allocation == "measured"
    layers = found.candidates.layers
    assert sum(layers[name].cost(rank) for name, rank in decision.ranks.items()) <= WEIGHTS


def test_language_models_are_refused_with_what_to_do():
    found = replace(measured(), forward=TokenForward())
    with pytest.raises(UsageError, match="default"):
        MeasuredKl().decide(
            found, weights_within(found.candidates.layers, WEIGHTS), multiple=1, progress=SILENT
        )
