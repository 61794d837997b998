"""The networks of the study: the benchmarks' workloads, and two more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

FACTORY = Path(__file__).parents[1] / "plain_cnn.py"
WINDOW = 128


def _cnn(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(
            model=f"{FACTORY}:build", checkpoint=paths["plain-cnn-checkpoint"], device="cpu"
        ),
        DataSettings(data="sklearn:digits", batch_size=64),
    )


def _smollm2(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(model=str(paths["smollm2-model"]), device="cpu"),
        DataSettings(data=str(paths["smollm2-data"]), max_length=WINDOW, batch_size=1),
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
WORKLOADS.register("smollm2")(
    Workload(
        name="smollm2",
        title="SmolLM2-135M",
        budgets=("layers=80%",),
        settings=_smollm2,
        places={
            "smollm2-model": "SmolLM2-135M, a directory or a GGUF file",
            "smollm2-data": "a text file, or a directory with train.txt and test.txt",
        },
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
