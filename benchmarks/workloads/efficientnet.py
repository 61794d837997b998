"""EfficientNet-Lite0 on Tiny-ImageNet: pointwise convolutions with BatchNorm, 200 classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

CHECKPOINT, DATA = "efficientnet-lite0-checkpoint", "tiny-imagenet-data"
PIXELS = 128


def _settings(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(
            model="tf_efficientnet_lite0",
            checkpoint=paths[CHECKPOINT],
            input_size=(3, PIXELS, PIXELS),
            device="cpu",
        ),
        DataSettings(data=str(paths[DATA]), batch_size=64, limit=2000),
    )


WORKLOADS.register("efficientnet-lite0")(
    Workload(
        name="efficientnet-lite0",
        title="EfficientNet-Lite0, Tiny-ImageNet",
        budgets=("layers=90%", "layers=80%", "layers=70%"),
        settings=_settings,
        places={
            CHECKPOINT: "the weights of EfficientNet-Lite0 (.pth or .safetensors)",
            DATA: "class folders of Tiny-ImageNet's validation images",
        },
    )
)
