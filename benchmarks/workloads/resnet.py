"""A ResNet with BatchNorm that benchmarks/train_resnet.py trains on small images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

FACTORY = Path(__file__).parents[1] / "resnet.py"


def _settings(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(
            model=f"{FACTORY}:build", checkpoint=paths["resnet-checkpoint"], device="cpu"
        ),
        DataSettings(data=str(paths["resnet-data"]), batch_size=64),
    )


WORKLOADS.register("resnet-batchnorm")(
    Workload(
        name="resnet-batchnorm",
        title="ResNet-20 with BatchNorm, Tiny-ImageNet classes",
        budgets=("layers=85%", "layers=70%", "layers=50%"),
        settings=_settings,
        places={
            "resnet-checkpoint": "the weights that benchmarks/train_resnet.py wrote",
            "resnet-data": "the class folders train and test that it wrote beside them",
        },
    )
)
