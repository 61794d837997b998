"""The networks of the study: the benchmarks' workloads, and one more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

FACTORY = Path(__file__).parents[1] / "plain_cnn.py"


def _cnn(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(
            model=f"{FACTORY}:build", checkpoint=paths["plain-cnn-checkpoint"], device="cpu"
        ),
        DataSettings(data="sklearn:digits", batch_size=64),
    )


WORKLOADS.register("plain-cnn")(
    Workload(
        name="plain-cnn",
        title="CNN, digits",
        budgets=("layers=50%", "layers=25%"),
        settings=_cnn,
        places={"plain-cnn-checkpoint": "what examples/train_plain_cnn.py --out wrote"},
    )
)
ORDER = (
    "digits-vit",
    "plain-cnn",
    "efficientnet-lite0",
    "minilm-r52",
    "minilm-second-text",
    "resnet-batchnorm",
    "smollm2",
)
"""What the study runs on, the cheapest first."""
