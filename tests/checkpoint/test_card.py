from __future__ import annotations

import ast
import re

import pytest

from compressor.checkpoint.card import model_card
from compressor.models import MODEL_SOURCES
from compressor.schema import DataFigures, LayerFigures, ModelFigures, Report, SplitFigures


def report(framework: str = "timm", **changes: object) -> Report:
    split = SplitFigures(samples=1000, sha256="0" * 64)
    figures = {"loss": 0.5, "layer_parameters": 800, "bytes": 4096, "flops": 10_000}
    layer = {
        "kind": "linear",
        "shape": (32, 32),
        "full_rank": 32,
        "break_even_rank": 15,
        "parameters": 512,
        **dict.fromkeys(("nc1_quotient", "nc1", "cdnv", "nc1_quotient_output"), 1.0),
        "bound": 0.1,
        "energy_lost": 0.05,
    }
    values = {
        "model": "some/model",
        "framework": framework,
        "model_sha256": "1" * 64,
        "method": "nc1",
        "budget": ("layers=50%",),
        "seed": 7,
        "device": "cpu",
        "command": "compressor compress some/model --budget layers=50% --out small",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"torch": "2.6"},
        "data": DataFigures(
            reference="data", classes=3, calibration=split, selection=split, test=split
        ),
        "dense": ModelFigures(accuracy=0.9137, parameters=1_000_000, **figures),
        "compressed": ModelFigures(
            accuracy=0.9042, parameters=600_000, kl_to_dense=0.0123, agreement=0.97, **figures
        ),
        "layers": (
            LayerFigures(name="a", rank=8, **layer),
            LayerFigures(name="b", rank=32, **layer),
        ),
        "left_dense": (),
        "seconds": {},
        "out": "runs/small",
        "notes": ("mind this",),
    }
    return Report(**{**values, **changes})


@pytest.mark.parametrize("framework", MODEL_SOURCES.names())
def test_card_tells_figures_loading_and_making(framework: str) -> None:
    card = model_card(report(framework))
    for expected in (
        "91.37 %",
        "90.42 %",
        "1,000,000",
        "600,000",
        "0.0123",
        "1 of 2 candidate layers",
        "pip install .",
        "import compressor",
        "compressor compress some/model --budget layers=50% --out small",
        "mind this",
        "# small",
    ):
        assert expected in card
    assert card.startswith("---\nlibrary_name: ")
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        ast.parse(block)
        assert "'small'" in block


def test_card_names_the_auto_class() -> None:
    card = model_card(report("transformers"), auto_class="AutoModelForImageClassification")
    assert "AutoModelForImageClassification.from_pretrained('small')" in card


def test_card_without_labels_or_command() -> None:
    bare = ModelFigures(
        accuracy=None, loss=None, parameters=1, layer_parameters=1, bytes=None, flops=1
    )
    card = model_card(report(dense=bare, compressed=bare, command=None, budget=()))
    assert "| accuracy | – | – |" in card
    assert "from a plan" in card
    assert "None" not in card
